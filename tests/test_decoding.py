"""Shapes: B batch, S source tokens, M width of the memory."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unet_xattn import Transformer
from unet_xattn.decoding import allowed, beam_search, greedy, greedy_steps, sample

START, END, VOCABULARY = 1, 2, 12
SOURCE = torch.tensor([[1, 5, 6, 7, 2], [1, 8, 2, 0, 0], [1, 9, 9, 4, 2]])
REAL = SOURCE != 0


def model(**settings: object) -> Transformer:
    """Untrained, but of strong opinions: random weights large enough that memory and tokens both matter."""
    torch.manual_seed(3)
    transformer = Transformer(
        VOCABULARY, **({"width": 32, "heads": 4, "encoder_layers": 1, "decoder_layers": 2} | settings)
    )
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape))
    return transformer.eval()


@pytest.fixture(scope="module")
def learnt() -> Transformer:
    """A little training, enough to write the source backwards most of the time: sentences that differ and that end."""
    torch.manual_seed(0)
    transformer = Transformer(VOCABULARY, width=32, heads=4, encoder_layers=1, decoder_layers=1)
    optimizer = torch.optim.Adam(transformer.parameters(), 3e-3)
    for _ in range(1000):
        tokens = torch.randint(3, VOCABULARY, (32, int(torch.randint(1, 4, ()))))
        ends = torch.full((32, 1), START), torch.full((32, 1), END)
        logits = transformer(torch.cat([ends[0], tokens, ends[1]], 1), torch.cat([ends[0], tokens.flip(1)], 1))
        loss = F.cross_entropy(logits.flatten(0, 1), torch.cat([tokens.flip(1), ends[1]], 1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return transformer.eval()


def read(transformer: Transformer) -> tuple[Tensor, Tensor, int, int]:
    return transformer.encode(SOURCE, REAL), REAL, START, END


def all_sentences(transformer: Transformer, row: int, longest: int) -> list[tuple[float, int, list[int]]]:
    """(log-probability, steps, tokens) of every sentence of at most `longest` tokens, by teacher forcing."""
    others = [token for token in range(VOCABULARY) if token != END]
    full = torch.tensor(list(product(others, repeat=longest)))  # (sentences, longest)
    target = torch.cat([torch.full((len(full), 1), START), full], dim=1)
    source, real = SOURCE[row].expand(len(full), -1), REAL[row].expand(len(full), -1)
    gains = transformer(source, target, real).log_softmax(-1).detach()  # (sentences, longest + 1, V)
    said = gains[:, :-1].gather(2, full[..., None]).squeeze(-1).cumsum(dim=1)  # (sentences, longest)
    found = [(score, longest, ids) for score, ids in zip(said[:, -1].tolist(), full.tolist(), strict=True)]
    for length in range(longest):  # those that end before
        before = said[:, length - 1] if length else 0
        scores = (before + gains[:, length, END]).tolist()
        found += [(score, length + 1, ids[:length]) for score, ids in zip(scores, full.tolist(), strict=True)]
    return found


# Greedy.


def test_greedy_takes_the_likeliest_token_of_teacher_forcing_each_time() -> None:
    transformer = model()
    for row, ids in enumerate(greedy(transformer, *read(transformer), max_tokens=10)):
        assert ids and END not in ids
        target = torch.tensor([[START, *ids]])
        likeliest = transformer(SOURCE[row : row + 1], target, REAL[row : row + 1])[0].argmax(-1).tolist()
        assert likeliest[: len(ids)] == ids
        assert len(ids) == 10 or likeliest[len(ids)] == END


def test_what_it_has_learnt_comes_out_and_ends(learnt: Transformer) -> None:
    assert greedy(learnt, *read(learnt)) == [[7, 6, 5], [8], [4, 9, 9]]
    assert beam_search(learnt, *read(learnt)) == [[7, 6, 5], [8], [4, 9, 9]]
    for writes in (greedy, beam_search, sample):  # in whole numbers, as a tokenizer and JSON take them
        assert {type(token) for ids in writes(learnt, *read(learnt)) for token in ids} == {int}


def test_the_cache_changes_no_token(learnt: Transformer) -> None:
    for transformer in (learnt, model()):
        args = read(transformer)
        assert greedy(transformer, *args, use_cache=False) == greedy(transformer, *args)


def test_the_steps_of_greedy_are_what_it_writes_and_then_the_end(learnt: Transformer) -> None:
    steps = torch.stack(list(greedy_steps(learnt, *read(learnt))), dim=1)
    assert steps.tolist() == [[7, 6, 5, END], [8, END, END, END], [4, 9, 9, END]]
    assert list(greedy_steps(learnt, *read(learnt), max_tokens=0)) == []


@pytest.mark.parametrize("writes", [greedy, beam_search], ids=lambda f: f.__name__)
def test_a_sentence_alone_or_padded_is_written_as_in_the_batch(learnt: Transformer, writes: Callable) -> None:
    together = writes(learnt, *read(learnt))
    for row in range(3):
        source, real = SOURCE[row : row + 1], REAL[row : row + 1]
        alone = learnt.encode(source[:, : int(real.sum())])
        assert writes(learnt, alone, None, START, END) == together[row : row + 1]
        source = torch.cat([torch.where(real, source, 7), torch.full((1, 4), 9)], dim=1)
        real = torch.cat([real, torch.zeros(1, 4, dtype=torch.bool)], dim=1)
        assert writes(learnt, learnt.encode(source, real), real, START, END) == together[row : row + 1]


def test_a_memory_of_other_width_than_the_decoder_is_read() -> None:
    transformer = model(memory_width=20)
    memory = torch.randn(3, 5, 20)
    written = greedy(transformer, memory, REAL, START, END, max_tokens=6)
    changed = torch.where(REAL[..., None], memory, 100.0)  # behind the mask
    assert greedy(transformer, changed, REAL, START, END, max_tokens=6) == written
    assert beam_search(transformer, changed, REAL, START, END, max_tokens=6, beams=1) == written


def test_no_more_tokens_than_asked_for() -> None:
    transformer = model()
    assert all(len(ids) <= 3 for ids in greedy(transformer, *read(transformer), max_tokens=3))
    assert greedy(transformer, *read(transformer), max_tokens=0) == [[], [], []]


# Beam search.


def test_one_beam_is_greedy(learnt: Transformer) -> None:
    for transformer in (learnt, model()):
        args = read(transformer)
        assert beam_search(transformer, *args, beams=1) == greedy(transformer, *args)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
def test_enough_beams_find_the_best_of_all_sentences(length_penalty: float) -> None:
    transformer = model()
    found = beam_search(transformer, *read(transformer), max_tokens=3, beams=150, length_penalty=length_penalty)
    for row in range(3):
        sentences = all_sentences(transformer, row, 3)
        best = max(sentences, key=lambda sentence: sentence[0] / ((5 + sentence[1]) / 6) ** length_penalty)
        assert found[row] == best[2]


def searched_by_hand(transformer: Transformer, row: int, beams: int, length_penalty: float, longest: int) -> list[int]:
    """Beam search over plain lists, each sentence read anew at each step."""
    memory, real = transformer.encode(SOURCE[row : row + 1], REAL[row : row + 1]), REAL[row : row + 1]
    found: list[tuple[float, list[int]]] = [(0.0, [])]  # (log-probability, tokens)
    for _ in range(longest):
        more = [(score, ids) for score, ids in found if END in ids]
        for score, ids in found:
            if END not in ids:
                logits = transformer.decode(torch.tensor([[START, *ids]]), memory, real)[0, -1]
                more += [(score + gain, [*ids, token]) for token, gain in enumerate(logits.log_softmax(-1).tolist())]
        found = sorted(more, key=lambda each: -each[0] / ((5 + len(each[1])) / 6) ** length_penalty)[:beams]
    best = found[0][1]
    return best[: best.index(END)] if END in best else best


@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
def test_a_few_beams_are_those_of_a_search_by_hand(learnt: Transformer, beams: int, length_penalty: float) -> None:
    """So each beam goes on from its own words, its own cache and its own end."""
    for transformer in (learnt, model()):
        found = beam_search(transformer, *read(transformer), max_tokens=7, beams=beams, length_penalty=length_penalty)
        assert found == [searched_by_hand(transformer, row, beams, length_penalty, 7) for row in range(3)]


def test_a_search_stops_where_every_sentence_has_ended(learnt: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    read_tokens: list[int] = []
    decode = Transformer.decode

    def counted(self: Transformer, ids: Tensor, *arguments: object, **named: object) -> Tensor:
        read_tokens.append(ids.shape[1])
        return decode(self, ids, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Transformer, "decode", counted)
    for writes in (greedy, beam_search):
        read_tokens.clear()
        writes(learnt, *read(learnt), max_tokens=60)
        assert 4 <= len(read_tokens) < 20 and set(read_tokens) == {1}  # three words and the end


def test_a_strong_length_penalty_writes_longer_sentences(learnt: Transformer) -> None:
    short, long = (
        beam_search(learnt, *read(learnt), max_tokens=8, beams=8, length_penalty=penalty) for penalty in (0.0, 20.0)
    )
    assert sum(map(len, short)) < sum(map(len, long))


# Sampling.


def test_a_cold_sample_is_greedy_and_a_seed_repeats_it() -> None:
    transformer = model()
    args = read(transformer)
    assert sample(transformer, *args, temperature=1e-4) == greedy(transformer, *args)
    assert sample(transformer, *args, top_k=1) == sample(transformer, *args, top_p=1e-9) == greedy(transformer, *args)
    drawn = [
        sample(transformer, *args, temperature=2.0, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_samples_follow_the_models_distribution() -> None:
    transformer = model()
    memory = transformer.encode(SOURCE[:1]).expand(4000, -1, -1)
    drawn = sample(transformer, memory, None, START, END, max_tokens=1, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(torch.tensor([ids[0] if ids else END for ids in drawn]), minlength=VOCABULARY) / 4000
    expected = transformer(SOURCE[:1], torch.tensor([[START]]))[0, 0].softmax(-1)
    torch.testing.assert_close(counts, expected.detach(), rtol=0, atol=0.03)


def test_what_top_k_and_top_p_allow() -> None:
    logits = torch.tensor([[0.5, 0.1, 0.3, 0.1], [0.05, 0.05, 0.2, 0.7]]).log()

    def kept(top_k: int | None, top_p: float) -> list[list[int]]:
        return [row.isfinite().nonzero().flatten().tolist() for row in allowed(logits, top_k, top_p)]

    assert kept(None, 1.0) == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert kept(2, 1.0) == [[0, 2], [2, 3]]
    assert kept(None, 0.6) == [[0, 2], [3]]
    assert kept(None, 1e-9) == kept(1, 1.0) == [[0], [3]]


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}], ids=str)
def test_settings_that_mean_nothing_are_refused_by_name(settings: dict) -> None:
    transformer = model()
    with pytest.raises(ValueError, match=next(iter(settings))):
        sample(transformer, *read(transformer), **settings)
    with pytest.raises(ValueError, match="beams"):
        beam_search(transformer, *read(transformer), beams=0)
