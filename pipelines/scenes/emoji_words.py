"""The names of the emoji in English and Chinese, with the Chinese measure words."""

from pipelines.scenes.captions import CHINESE_COLOURS, CHINESE_GROUNDS, Lexicon, Noun

EMOJI: dict[str, tuple[str, str, str, str]] = {
    "cat": ("🐱", "cats", "只", "猫"),
    "dog": ("🐶", "dogs", "只", "狗"),
    "panda": ("🐼", "pandas", "只", "熊猫"),
    "frog": ("🐸", "frogs", "只", "青蛙"),
    "pig": ("🐷", "pigs", "头", "猪"),
    "elephant": ("🐘", "elephants", "头", "大象"),
    "turtle": ("🐢", "turtles", "只", "乌龟"),
    "octopus": ("🐙", "octopuses", "只", "章鱼"),
    "crab": ("🦀", "crabs", "只", "螃蟹"),
    "fish": ("🐟", "fish", "条", "鱼"),
    "butterfly": ("🦋", "butterflies", "只", "蝴蝶"),
    "bee": ("🐝", "bees", "只", "蜜蜂"),
    "ladybug": ("🐞", "ladybugs", "只", "瓢虫"),
    "penguin": ("🐧", "penguins", "只", "企鹅"),
    "owl": ("🦉", "owls", "只", "猫头鹰"),
    "duck": ("🦆", "ducks", "只", "鸭子"),
    "rooster": ("🐓", "roosters", "只", "公鸡"),
    "snail": ("🐌", "snails", "只", "蜗牛"),
    "zebra": ("🦓", "zebras", "匹", "斑马"),
    "flamingo": ("🦩", "flamingos", "只", "火烈鸟"),
    "cactus": ("🌵", "cactuses", "棵", "仙人掌"),
    "tree": ("🌲", "trees", "棵", "树"),
    "palm tree": ("🌴", "palm trees", "棵", "棕榈树"),
    "tulip": ("🌷", "tulips", "朵", "郁金香"),
    "sunflower": ("🌻", "sunflowers", "朵", "向日葵"),
    "mushroom": ("🍄", "mushrooms", "个", "蘑菇"),
    "apple": ("🍎", "apples", "个", "苹果"),
    "banana": ("🍌", "bananas", "根", "香蕉"),
    "watermelon": ("🍉", "watermelons", "块", "西瓜"),
    "strawberry": ("🍓", "strawberries", "颗", "草莓"),
    "pineapple": ("🍍", "pineapples", "个", "菠萝"),
    "carrot": ("🥕", "carrots", "根", "胡萝卜"),
    "eggplant": ("🍆", "eggplants", "个", "茄子"),
    "avocado": ("🥑", "avocados", "个", "牛油果"),
    "lemon": ("🍋", "lemons", "个", "柠檬"),
    "burger": ("🍔", "burgers", "个", "汉堡"),
    "pizza": ("🍕", "pizzas", "块", "披萨"),
    "donut": ("🍩", "donuts", "个", "甜甜圈"),
    "ice cream": ("🍦", "ice creams", "支", "冰淇淋"),
    "cake": ("🎂", "cakes", "个", "蛋糕"),
    "car": ("🚗", "cars", "辆", "汽车"),
    "bus": ("🚌", "buses", "辆", "公交车"),
    "bicycle": ("🚲", "bicycles", "辆", "自行车"),
    "rocket": ("🚀", "rockets", "枚", "火箭"),
    "airplane": ("✈", "airplanes", "架", "飞机"),
    "sailboat": ("⛵", "sailboats", "艘", "帆船"),
    "train": ("🚂", "trains", "列", "火车"),
    "sun": ("☀", "suns", "个", "太阳"),
    "star": ("⭐", "stars", "颗", "星星"),
    "rainbow": ("🌈", "rainbows", "道", "彩虹"),
    "snowman": ("⛄", "snowmen", "个", "雪人"),
    "umbrella": ("☂", "umbrellas", "把", "雨伞"),
    "soccer ball": ("⚽", "soccer balls", "个", "足球"),
    "balloon": ("🎈", "balloons", "个", "气球"),
    "gift": ("🎁", "gifts", "份", "礼物"),
    "crown": ("👑", "crowns", "顶", "皇冠"),
    "shirt": ("👕", "shirts", "件", "上衣"),
    "dress": ("👗", "dresses", "条", "裙子"),
    "hat": ("🎩", "hats", "顶", "帽子"),
    "camera": ("📷", "cameras", "台", "相机"),
    "key": ("🔑", "keys", "把", "钥匙"),
    "clock": ("⏰", "clocks", "个", "闹钟"),
    "teddy bear": ("🧸", "teddy bears", "只", "泰迪熊"),
    "house": ("🏠", "houses", "座", "房子"),
    "robot": ("🤖", "robots", "个", "机器人"),
    "pumpkin": ("🎃", "pumpkins", "个", "南瓜"),
}
"""Name -> its emoji, its plural, and its measure word and name in Chinese.

No two share both outline and colour, so that they can be told apart at 18 pixels. The order of this table decides which
pairs are held out of training (`emoji.is_held_out`): add new rows at the end.
"""

EMOJI_GROUND_WORDS = CHINESE_GROUNDS | {
    name: CHINESE_COLOURS[name] for name in ("yellow", "green", "blue", "pink", "purple")
}

EMOJI_LEXICON = Lexicon(
    {name: Noun(plural, (chinese,), measure) for name, (_, plural, measure, chinese) in EMOJI.items()},
    {},
    EMOJI_GROUND_WORDS,
)
