"""The words of captions as people type them, beside those of `captions`: counts to four, places, more relations."""

from pipelines.scenes.captions import CHINESE_RELATIONS, RELATIONS

COUNTS = {2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}

TYPED_RELATIONS = RELATIONS | {"beside": ("next to", "beside", "by"), "between": ("between", "in between")}
"""Relation -> its wordings. "beside" is left or right of; "between" has two other objects."""

PLACES: dict[str, tuple[str, ...]] = {
    "top left": ("in the top left", "in the upper left", "in the top left corner"),
    "top right": ("in the top right", "in the upper right", "in the top right corner"),
    "bottom left": ("in the bottom left", "in the lower left", "in the bottom left corner"),
    "bottom right": ("in the bottom right", "in the lower right", "in the bottom right corner"),
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
    "top": ("at the top", "on the top"),
    "bottom": ("at the bottom", "on the bottom"),
    "middle": ("in the middle", "in the center", "in the centre"),
}
"""Place in the picture -> its wordings."""

MORE_PLACES: dict[str, tuple[str, ...]] = {
    place: tuple(
        f"{before} {word}{corner}"
        for before in ("in the", "at the", "on the")
        for word in ([place, place.replace("top", "upper").replace("bottom", "lower")] if " " in place else [place])
        for corner in ("", " corner", " side", " edge", " of the picture")
    )
    for place in PLACES
}
"""More wordings of places, which are understood but not written."""

GRAY = ("gray", "grey")

OPENINGS = ("a picture of ", "an image of ", "a photo of ", "a drawing of ", "draw ", "draw me ", "show me ")
THERE = ("there is ", "there are ")

CHINESE_COUNTS = {1: ("一", "1"), 2: ("两", "二", "2"), 3: ("三", "3"), 4: ("四", "4")}

TYPED_CHINESE_COLOURS = {
    "red": ("红色", "红"),
    "orange": ("橙色", "橙"),
    "yellow": ("黄色", "黄"),
    "green": ("绿色", "绿"),
    "blue": ("蓝色", "蓝"),
    "purple": ("紫色", "紫"),
    "pink": ("粉色", "粉红色"),
    "brown": ("棕色", "褐色"),
}
TYPED_CHINESE_RELATIONS = CHINESE_RELATIONS | {"beside": ("旁边", "旁"), "between": ("之间", "中间")}
CHINESE_PLACES = {
    "top left": ("左上角", "左上方"),
    "top right": ("右上角", "右上方"),
    "bottom left": ("左下角", "左下方"),
    "bottom right": ("右下角", "右下方"),
    "left": ("左边", "左侧"),
    "right": ("右边", "右侧"),
    "top": ("上面", "上方"),
    "bottom": ("下面", "下方"),
    "middle": ("中间", "中央"),
}
CHINESE_OPENINGS = ("图中有", "有", "画", "请画")
