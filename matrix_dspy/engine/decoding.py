"""Prompts to answers on a model of transformers: rows join the batch as others leave it, each drawn by its own dials.

In go a causal LM and rows of token ids, out come the same rows with their answers; what a chat is, what a request is
and who waits for it is left to the engine. What is drawn for a row depends on its own seed and logits alone, so the
rows beside it matter only as far as they change the last digits of its logits: in float32 on a CPU hardly ever, in
bfloat16 now and then. Written for torch 2.13 and transformers 5.19; importing it imports both.
"""

import inspect
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

PREFILL_TOKENS = 8192
"""Tokens, padding included, that one pass over new prompts may hold: what bounds its memory."""
JOIN_EVERY = 8
"""Steps after which a waiting row is let in even if hardly a place is free; every joining costs a pass of its own."""
GROW_EVERY = 256
"""Steps after which a batch that memory made smaller is tried a little larger."""
GREEDY = 1e-5
"""Temperatures below this one take the likeliest token, as in vLLM."""
_STOP_SLACK = 8
"""Tokens looked at beyond the length of a stop string, for those that end or begin in the middle of a character."""

log = logging.getLogger("matrix_dspy")


@dataclass(frozen=True, slots=True)
class Dials:
    """How one token is drawn; the neutral values are the defaults."""

    temperature: float = 1.0
    top_k: int = 0
    """Likeliest tokens that are kept; 0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < GREEDY or self.top_k == 1

    @property
    def is_ranked(self) -> bool:
        """Whether the tokens have to be put in order to draw one."""
        return self.top_k > 0 or self.top_p < 1.0


@dataclass(slots=True, eq=False)
class Row:
    """One answer in the making; it is done once it has a `reason` or a `fault`."""

    prompt: list[int]
    """Token ids."""
    dials: Dials
    n_most: int
    """Longest answer, in tokens."""
    seed: str
    """The same seed, prompt and dials give the same answer."""
    stops: tuple[str, ...] = ()
    n_logprobs: int = 0
    is_wanted: Callable[[], bool] = lambda: True
    """Asked before every step; an unwanted row leaves the batch."""
    tokens: list[int] = field(default_factory=list)
    """What was answered so far, the token that ends it included."""
    places: list[dict[str, Any]] = field(default_factory=list)
    """For each token its log-probability and the likeliest in its place, where asked for."""
    text: str = ""
    """The answer, once it is done; without the stop string, and without half a character at its end."""
    reason: str = ""
    """`stop` or `length`, once it is done."""
    fault: str = ""
    """Why there is no answer."""
    seen: Tensor | None = None
    """(vocabulary,) which tokens the prompt and the answer hold; kept where a repetition is penalised."""

    @property
    def is_done(self) -> bool:
        """Whether nothing more will be added."""
        return bool(self.reason or self.fault)

    @property
    def known(self) -> tuple[int, ...]:
        """The prompt and what was answered so far."""
        return (*self.prompt, *self.tokens)


class Decoder:
    """A model and the rows it works on; `waiting` is filled from outside, `step` makes one token for each.

    `ends` are the tokens that end an answer, `n_rows` is how many rows are worked on at once. Rows that join are
    prefilled together, equal prompts once. Where a model remembers in another way than by keys and values of all
    tokens (sliding windows, recurrent states), rows join only when all before them are done. When the memory of the
    device is exhausted, half as many rows go on and the others wait, and what they have said is kept; later `n_rows`
    grows again, little by little.
    """

    def __init__(self, model: Any, tokenizer: Any, *, ends: Sequence[int], n_rows: int) -> None:
        self.waiting: deque[Row] = deque()
        self.n_rows = self._n_most = n_rows
        self._model = model
        self._tokenizer = tokenizer
        self._ends = frozenset(ends)
        self._config = model.config.get_text_config(decoder=True)
        layers = DynamicCache(config=self._config).layers
        self._can_join = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
        self._taken = inspect.signature(model.forward).parameters
        self._rows: list[Row] = []
        self._joining: list[Row] = []
        self._done: list[Row] = []
        self._cache: Any = None
        self._mask = torch.zeros(0)
        """(n_rows, n_tokens) 1 for a token in the cache, 0 for padding, which is on the left."""
        self._n_steps = 0
        self._is_said = False

    @property
    def has_work(self) -> bool:
        """Whether any row is unfinished."""
        return bool(self._rows or self.waiting)

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Give every row one more token and let in what waits; return the rows that are done now."""
        self._n_steps += 1
        if self._n_steps % GROW_EVERY == 0:
            self.n_rows = min(self.n_rows + max(self.n_rows // 8, 1), self._n_most)
        is_short = False
        try:
            self._drop_unwanted()
            if self._rows:
                self._advance()
            if self._has_room():
                self._admit()
        except torch.OutOfMemoryError:
            is_short = True  # the traceback holds tensors: they are gone only behind this block
        if is_short:
            self._shrink()
        done, self._done = self._done, []
        return done

    def _drop_unwanted(self) -> None:
        self.waiting = deque(row for row in self.waiting if row.is_wanted())
        self._keep([place for place, row in enumerate(self._rows) if row.is_wanted()])

    def _has_room(self) -> bool:
        n_free = self.n_rows - len(self._rows)
        if not self.waiting or n_free < 1:
            return False
        is_worth_it = n_free >= self.n_rows // 8 or self._n_steps % JOIN_EVERY == 0
        return not self._rows or (self._can_join and is_worth_it)

    def _advance(self) -> None:
        """Make the next token of every running row."""
        rows = self._rows
        last = self._to_device([[row.tokens[-1]] for row in rows])
        self._mask = torch.cat([self._mask, torch.ones_like(last)], dim=1)
        self._keep(self._extend(rows, self._forward(last, self._mask, self._cache)))

    def _admit(self) -> None:
        """Take rows from those that wait, make the first token of each and have them join."""
        rows = [self.waiting.popleft() for _ in range(min(self.n_rows - len(self._rows), len(self.waiting)))]
        groups = split_rows(rows, PREFILL_TOKENS)
        if not self._can_join:
            self.waiting.extendleft(reversed([*chain(*groups[1:])]))
            groups = groups[:1]
        self._joining = [*chain(*groups)]
        for group in groups:
            self._join(group)

    def _join(self, rows: list[Row]) -> None:
        prompts = [row.known for row in rows]
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        width = max(map(len, places))
        ids = self._to_device([[0] * (width - len(prompt)) + list(prompt) for prompt in places])
        mask = self._to_device([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in places])
        cache: Any = DynamicCache(config=self._config)
        logits = self._forward(ids, mask, cache)
        row_places = [places[prompt] for prompt in prompts]
        kept = self._extend(rows, logits[self._to_device(row_places)])
        chosen = self._to_device([row_places[place] for place in kept])
        if len(kept):
            cache.reorder_cache(chosen)
            self._merge(cache, mask[chosen])
            self._rows = self._rows + [rows[place] for place in kept]
        joined = set(map(id, rows))
        self._joining = [row for row in self._joining if id(row) not in joined]

    def _merge(self, cache: Any, mask: Tensor) -> None:
        """Put new rows below the running ones, the shorter side padded on its left."""
        if not self._rows:
            self._cache, self._mask = cache, mask
            return
        width = max(mask.shape[1], self._mask.shape[1])
        merged = [
            tuple(
                torch.cat([pad(one, (0, 0, width - one.shape[-2], 0)) for one in pair])
                for pair in ((mine.keys, theirs.keys), (mine.values, theirs.values))
            )
            for mine, theirs in zip(self._cache.layers, cache.layers, strict=True)
        ]
        for layer, (keys, values) in zip(self._cache.layers, merged, strict=True):
            layer.keys, layer.values = keys, values
        self._mask = torch.cat([pad(one, (width - one.shape[1], 0)) for one in (self._mask, mask)])

    def _keep(self, places: list[int]) -> None:
        """Go on with the rows at `places` alone."""
        if len(places) == len(self._rows):
            return
        self._rows = [self._rows[place] for place in places]
        if not places:
            self._cache = None
            return
        chosen = self._to_device(places)
        self._cache.reorder_cache(chosen)
        self._mask = self._mask[chosen]
        n_blank = int((self._mask.sum(dim=0).cumsum(dim=0) == 0).sum()) if self._can_join else 0
        if n_blank:
            self._mask = self._mask[:, n_blank:]
            for layer in self._cache.layers:
                layer.keys, layer.values = layer.keys[..., n_blank:, :], layer.values[..., n_blank:, :]

    def _shrink(self) -> None:
        """Begin anew with half as many rows; a row that is alone is given up."""
        rows = [row for row in (*self._rows, *self._joining) if not row.is_done]
        self._rows, self._joining, self._cache = [], [], None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(rows) < 2:
            for row in rows:
                row.fault = (
                    f"a prompt of {len(row.prompt)} tokens and its answer do not fit into the memory of "
                    f"{self._model.device}"
                )
            self._done += rows
            return
        self.n_rows = len(rows) // 2
        self.waiting.extendleft(reversed(rows))
        log.log(
            logging.DEBUG if self._is_said else logging.WARNING,
            "the memory of %s does not hold %d rows at once; going on with fewer, batch=%d would do so from the start",
            *(self._model.device, len(rows), self.n_rows),
        )
        self._is_said = True

    def _forward(self, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """Return (n_rows, vocabulary) float32 logits of the next token; the cache grows by `ids`."""
        given: dict[str, Any] = {"logits_to_keep": 1}
        given["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        given = {name: value for name, value in given.items() if name in self._taken}
        found = self._model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **given)
        return found.logits[:, -1].float()

    def _extend(self, rows: list[Row], logits: Tensor) -> list[int]:
        """Draw a token for each row and note it; return the places of the rows that go on."""
        spots = [read_spot(f"{row.seed}/{len(row.tokens)}") for row in rows]
        chosen = draw_tokens(self._penalise(rows, logits), [row.dials for row in rows], spots)
        chosen = torch.where(torch.isfinite(logits.amax(dim=-1)), chosen, -1)
        asking = [place for place, row in enumerate(rows) if row.n_logprobs]
        if asking:
            at = self._to_device(asking)
            self._note_places([rows[place] for place in asking], logits[at], chosen[at])
        for row, token in zip(rows, chosen.tolist(), strict=True):
            self._note(row, token)
        self._done += [row for row in rows if row.is_done]
        return [place for place, row in enumerate(rows) if not row.is_done]

    def _penalise(self, rows: list[Row], logits: Tensor) -> Tensor:
        """Return the logits with those of tokens seen before made smaller, where a row asks for it."""
        places = [place for place, row in enumerate(rows) if row.dials.repetition_penalty != 1.0]
        if not places:
            return logits
        logits = logits.clone()
        for place in places:
            row, penalty = rows[place], rows[place].dials.repetition_penalty
            if row.seen is None:
                row.seen = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
                row.seen[self._to_device(row.known)] = True
            elif row.tokens:
                row.seen[row.tokens[-1]] = True
            held = torch.where(logits[place] > 0, logits[place] / penalty, logits[place] * penalty)
            logits[place] = torch.where(row.seen, held, logits[place])
        return logits

    def _note_places(self, rows: list[Row], logits: Tensor, chosen: Tensor) -> None:
        """Note what the model itself gave each token, before any dial: what vLLM reports."""
        n_most = min(max(row.n_logprobs for row in rows), logits.shape[1])
        logs = logits.log_softmax(dim=-1)
        drawn = logs.gather(1, chosen.clamp(min=0).unsqueeze(1)).squeeze(1).tolist()
        values, ids = (each.tolist() for each in logs.topk(n_most))
        for row, token, logprob, *top in zip(rows, chosen.tolist(), drawn, ids, values, strict=True):
            likeliest = [self._write_logprob(*pair) for pair in zip(*top, strict=True)][: row.n_logprobs]
            row.places.append(self._write_logprob(token, logprob) | {"top_logprobs": likeliest})

    def _write_logprob(self, token: int, logprob: float) -> dict[str, Any]:
        # JSON knows no infinity; a served vLLM writes the same floor
        return {"token": self._decode([max(token, 0)]), "logprob": max(logprob, -9999.0)}

    def _note(self, row: Row, token: int) -> None:
        """Add a token to a row, and see whether that ends it."""
        if token < 0:
            row.fault = "the model gives no numbers for the next token, but infinities or NaN"
            return
        row.tokens.append(token)
        if token in self._ends:
            self._finish(row, "stop", row.tokens[:-1])
        elif len(row.tokens) >= row.n_most:
            self._finish(row, "length", row.tokens)
        elif row.stops:
            n_tail = max(len(stop.encode()) for stop in row.stops) + _STOP_SLACK
            if _find_stop(self._read(row.tokens[-n_tail:]), row.stops) is not None:
                self._finish(row, "", row.tokens)

    def _finish(self, row: Row, reason: str, tokens: list[int]) -> None:
        """Write the text down; without a `reason` only if a stop string is in it."""
        text = self._read(tokens)
        cut = _find_stop(text, row.stops)
        row.reason = reason if cut is None else "stop"
        row.text = text.rstrip("\ufffd") if cut is None else text[:cut]

    def _read(self, tokens: list[int]) -> str:
        return self._decode(tokens, skip_special_tokens=True)

    def _decode(self, tokens: list[int], **how: Any) -> str:
        return self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False, **how)

    def _to_device(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._model.device)


def split_rows(rows: list[Row], n_most: int) -> list[list[Row]]:
    """Divide rows into groups of similar length that hold at most `n_most` tokens each once they are padded.

    Equal prompts are in one group and count once; a row longer than `n_most` is a group of its own.
    """
    groups: list[list[Row]] = []
    n_prompts, before = 0, ()
    for row in sorted(rows, key=lambda row: (len(row.known), row.known)):
        known = row.known
        if not groups or (known != before and (n_prompts + 1) * len(known) > n_most):
            groups.append([])
            n_prompts = 0
        n_prompts += not groups[-1] or known != before
        groups[-1].append(row)
        before = known
    return groups


def read_spot(seed: str) -> float:
    """Return a number from 0 up to 1, evenly spread over seeds and the same in any process."""
    return (int.from_bytes(blake2b(seed.encode(), digest_size=8).digest()) >> 11) * 2.0**-53


def draw_tokens(logits: Tensor, dials: Sequence[Dials], spots: Sequence[float]) -> Tensor:
    """Return (n_rows,) token ids, one for each row of (n_rows, vocabulary) float32 logits.

    `spots` are numbers from 0 up to 1: the places in the rows' cumulative distributions. The order is vLLM's:
    temperature, min_p, top_k, top_p.
    """
    chosen = logits.argmax(dim=-1)
    for is_ranked in (False, True):
        places = [p for p, dial in enumerate(dials) if not dial.is_greedy and dial.is_ranked == is_ranked]
        if places:
            at = torch.tensor(places, device=logits.device)
            draw = _draw_ranked if is_ranked else _draw
            row_dials = [dials[place] for place in places]
            chosen[at] = draw(
                _scale(logits[at], row_dials), row_dials, _to_column([spots[place] for place in places], logits)
            )
    return chosen


def _scale(logits: Tensor, dials: list[Dials]) -> Tensor:
    """Return float64 logits over temperature, minus infinity where min_p rules a token out."""
    scaled = logits / _to_column([dial.temperature for dial in dials], logits)
    least = _to_column([math.log(dial.min_p) if dial.min_p > 0 else -math.inf for dial in dials], logits)
    return scaled.masked_fill(scaled < scaled.amax(dim=-1, keepdim=True) + least, -math.inf)


def _draw(logits: Tensor, dials: list[Dials], spots: Tensor) -> Tensor:
    return _pick(logits.softmax(dim=-1), spots).squeeze(1)


def _draw_ranked(logits: Tensor, dials: list[Dials], spots: Tensor) -> Tensor:
    n_tokens = logits.shape[1]
    widths = [min(dial.top_k or n_tokens, n_tokens) for dial in dials]
    values, ids = logits.topk(max(widths))
    ranks = torch.arange(max(widths), device=logits.device)
    chances = values.masked_fill(ranks >= _to_column(widths, logits), -math.inf).softmax(dim=-1)
    above = chances.cumsum(dim=-1) - chances
    chances = chances.masked_fill(above >= _to_column([dial.top_p for dial in dials], logits), 0.0)
    return ids.gather(1, _pick(chances, spots)).squeeze(1)


def _pick(chances: Tensor, spots: Tensor) -> Tensor:
    """Return (n_rows, 1) places: where the running sum of a row passes its spot."""
    sums = chances.cumsum(dim=-1)
    places = torch.searchsorted(sums, spots * sums[:, -1:], right=True).clamp(max=chances.shape[1] - 1)
    # the sums of a GPU need not rise evenly, and a token without a chance must never be drawn
    return torch.where(chances.gather(1, places) > 0, places, chances.argmax(dim=-1, keepdim=True))


def _to_column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device).unsqueeze(1)


def _find_stop(text: str, stops: tuple[str, ...]) -> int | None:
    """Return where the first of the stop strings begins."""
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    return min(found, default=None)
