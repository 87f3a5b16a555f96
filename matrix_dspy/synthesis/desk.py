"""Who is asked for what: each program by its part's model, every call under a key of the instruction it serves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from matrix_dspy.bulk.journal import CallKey
from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.bulk.runner import Check, Outcome, Runner
from matrix_dspy.config import Config, SamplingConfig
from matrix_dspy.loading import load_program

STAGE = "synthesis"
Part = Literal["writer", "responder", "judge", "rejected"]
"""Whose model is asked."""
DESK_PARTS: tuple[Part, ...] = ("writer", "responder", "judge", "rejected")
PARTS: dict[str, Part] = {
    "instruction_writer": "writer",
    "follow_up_writer": "writer",
    "responder": "responder",
    "converser": "responder",
    "reviser": "responder",
    "critic": "judge",
    "pair_judge": "judge",
    "response_judge": "judge",
    "safety_judge": "judge",
    "instruction_rater": "judge",
}
"""Program to the part that answers it, where the caller names none."""


def find_part(program: str) -> Part | Literal["main"]:
    """Return whose model a program, or a purpose of its own, is asked with."""
    return "rejected" if program in ("rejected", "student") else PARTS.get(program, "main")


@dataclass(slots=True)
class Desk:
    """Asks programs for one data set; `runners` has one for every part, several may be the same."""

    config: Config
    runners: Mapping[Part, Runner]
    variants: Mapping[str, str] = field(default_factory=dict)
    """Variant per program where it is not `default`."""
    retries: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How often a program was asked anew for an instruction id, by `retry`."""
    _prompts: dict[str, Prompt] = field(default_factory=dict)

    def runner_of(self, part: Part) -> Runner:
        """Return the runner that asks a part's model."""
        return self.runners[part]

    def model_of(self, part: Part) -> str:
        """Return the name of a part's model."""
        return self.runners[part].engine.model

    async def ask(
        self,
        program: str,
        inputs: dict[str, Any],
        instruction_id: str,
        *,
        part: Part | None = None,
        purpose: str = "",
        round: int = 0,
        sample: int = 0,
        check: Check | None = None,
        expect: str = "",
    ) -> Outcome:
        """Ask a program once for an instruction; `purpose` names the call where the program's name would not do."""
        key = self._key(purpose or program, instruction_id, round, sample)
        runner = self.runners[part or PARTS[program]]
        keeps = "length" in self.config.curation.off
        sampling = self.config.sampling_of(program)
        prompt = self._find_prompt(program)
        return await runner.call(prompt, inputs, key, sampling, check=check, expect=expect, keeps_cut_off=keeps)

    async def sample(self, program: str, inputs: dict[str, Any], instruction_id: str, n: int) -> list[Outcome]:
        """Draw `n` answers of the model to be trained, in one request where its server can."""
        drawn = self.config.sampling_of(program)
        selection = self.config.selection
        sampling = SamplingConfig(
            **drawn.model_dump(exclude_unset=True)
            | {"temperature": selection.temperature, "top_p": selection.top_p, "max_tokens": drawn.max_tokens}
        )
        key = self._key("student", instruction_id, 0, 0)
        return await self.runners["rejected"].sample(self._find_prompt(program), inputs, key, sampling, n)

    def _key(self, purpose: str, instruction_id: str, round: int, sample: int) -> CallKey:
        attempt = self.retries.get(purpose, {}).get(instruction_id, 0)
        return CallKey(STAGE, instruction_id, purpose, round=round, attempt=attempt, sample=sample)

    def _find_prompt(self, program: str) -> Prompt:
        if program not in self._prompts:
            self._prompts[program] = Prompt.of(load_program(program, self.variants.get(program, "default")))
        return self._prompts[program]
