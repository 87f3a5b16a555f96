"""Profiles to agents: anonymised, verified twice, given a personality, a life goal and a plan (METHOD 2.1).

Raw profile text reaches the prompts of anonymiser and privacy checker and nothing else. What is returned and what is
rejected holds none of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matrix_dspy.bulk.checks import PLAN_SCHEMA, check_plan, read_plan
from matrix_dspy.bulk.journal import CallKey
from matrix_dspy.bulk.program import for_each
from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.bulk.runner import Check, Narrow, Outcome, Runner, Scrub, Turn
from matrix_dspy.config import Config
from matrix_dspy.loading import load_program
from matrix_dspy.population.identifiers import Identifiers
from matrix_dspy.population.pseudonyms import choose_pseudonyms
from matrix_dspy.text import one_line
from matrix_dspy.types import Agent, AnonymousProfile, Profile, Rejected, describe_persona, make_id

STAGE = "population"


@dataclass(frozen=True, slots=True)
class Population:
    """Everybody who made it, in the order of their profiles, and who did not."""

    profiles: list[AnonymousProfile]
    agents: list[Agent]
    rejected: list[Rejected]

    @property
    def histories(self) -> dict[str, tuple[str, ...]]:
        """Anonymised history by agent id."""
        by_profile = {profile.profile_id: profile.history for profile in self.profiles}
        return {agent.agent_id: by_profile[agent.profile_id] for agent in self.agents}


async def build_population(profiles: Sequence[Profile], config: Config, runner: Runner) -> Population:
    """Turn profiles into agents, all at once; a profile that fails is rejected and disturbs nobody."""
    maker = _AgentMaker(config, runner)
    pseudonyms = choose_pseudonyms(profiles, config.seed)
    made: list[tuple[AnonymousProfile, Agent] | Rejected | None] = [None] * len(profiles)

    async def work(position: int) -> None:
        made[position] = await maker.make(profiles[position], pseudonyms[position])
        runner.progress.kept += 1

    await for_each(len(profiles), 2 * runner.engine.concurrency, work)
    people = [pair for pair in made if isinstance(pair, tuple)]
    return Population(
        profiles=[profile for profile, _ in people],
        agents=[agent for _, agent in people],
        rejected=[row for row in made if isinstance(row, Rejected)],
    )


class _AgentMaker:
    def __init__(self, config: Config, runner: Runner) -> None:
        self.config = config
        self.runner = runner
        names = ("anonymiser", "privacy_checker", "goal_setter", "planner")
        self.prompts = {name: Prompt.of(load_program(name)) for name in names}

    async def make(self, profile: Profile, pseudonym: str) -> tuple[AnonymousProfile, Agent] | Rejected:
        anonymous = await self._anonymise(profile, pseudonym)
        if isinstance(anonymous, Rejected):
            return anonymous
        known = {"name": anonymous.name, "description": anonymous.description, "history": list(anonymous.history)}
        goal = await self._ask("goal_setter", known, profile.profile_id, check=_check_goal)
        if goal.fields is None:
            return _reject("agent", profile, "goal", goal)
        personality, life_goal = one_line(goal.fields["personality"]), one_line(goal.fields["life_goal"])
        persona = describe_persona(anonymous.name, anonymous.description, personality, life_goal)
        memory = [f"Before: {item}" for item in anonymous.history]
        plan = await self._ask(
            "planner", {"persona": persona, "memory": memory}, profile.profile_id, check=check_plan, narrow=PLAN_SCHEMA
        )
        if plan.fields is None:
            return _reject("agent", profile, "plan", plan)
        return anonymous, Agent(
            agent_id=make_id("agent", profile.profile_id, 0, self.config.seed),
            profile_id=profile.profile_id,
            name=anonymous.name,
            description=anonymous.description,
            personality=personality,
            life_goal=life_goal,
            plan=read_plan(plan.fields),
            has_history=bool(anonymous.history),
        )

    async def _anonymise(self, profile: Profile, pseudonym: str) -> AnonymousProfile | Rejected:
        identifiers = Identifiers(profile)
        raw = {"name": profile.name, "description": profile.description, "history": list(profile.history)}
        earlier: tuple[Turn, ...] = ()
        outcome = Outcome(None, "", "unparsed", "")
        for attempt in range(1 + self.config.population.n_retries):
            outcome = await self._ask(
                "anonymiser", {"pseudonym": pseudonym, **raw}, profile.profile_id, attempt=attempt, earlier=earlier,
                check=identifiers.check, scrub=identifiers.scrub, n_again=0,
                narrow={"anonymous_history": {"minItems": len(profile.history), "maxItems": len(profile.history)}},
            )  # fmt: skip
            if outcome.fields is None:
                if outcome.reason == "refused by server":
                    break
                earlier = (*earlier, Turn(outcome.text, outcome.detail))
                continue
            answer = {name: outcome.fields[name] for name in ("anonymous_description", "anonymous_history")}
            if not self.config.population.privacy_check:
                return _write_anonymous(profile, pseudonym, answer)
            verdict = await self._ask(
                "privacy_checker", {**raw, **answer}, profile.profile_id, attempt=attempt, scrub=identifiers.scrub
            )
            if verdict.fields is not None and not verdict.fields["is_identifiable"]:
                return _write_anonymous(profile, pseudonym, answer)
            problem = f"the person could still be identified: {verdict.fields['reason']}" if verdict.fields else ""
            earlier = (*earlier, Turn(outcome.text, problem or "it could not be checked; generalise more"))
            outcome = Outcome(None, "", "identifiable" if verdict.fields else "unchecked", "no anonymous version found")
        return _reject("profile", profile, "anonymise", outcome)

    async def _ask(
        self,
        program: str,
        inputs: dict[str, Any],
        profile_id: str,
        *,
        attempt: int = 0,
        earlier: tuple[Turn, ...] = (),
        check: Check | None = None,
        scrub: Scrub | None = None,
        n_again: int = 1,
        narrow: Narrow | None = None,
    ) -> Outcome:
        key = CallKey(STAGE, profile_id, program, attempt=attempt)
        sampling = self.config.sampling_of(program)
        return await self.runner.call(
            self.prompts[program], inputs, key, sampling, check=check, earlier=earlier, scrub=scrub, n_again=n_again,
            narrow=narrow,
        )  # fmt: skip


def _write_anonymous(profile: Profile, pseudonym: str, answer: dict[str, Any]) -> AnonymousProfile:
    return AnonymousProfile(
        profile_id=profile.profile_id,
        name=pseudonym,
        description=answer["anonymous_description"],
        history=tuple(answer["anonymous_history"]),
        origin=profile.origin,
        licence=profile.licence,
        is_invented=profile.is_invented,
    )


def _reject(noun: str, profile: Profile, step: str, outcome: Outcome) -> Rejected:
    """Reject a profile; the model's words are left out where they may hold raw profile text."""
    is_raw = noun == "profile"
    return Rejected(
        noun=noun,
        id=profile.profile_id,
        stage=f"{STAGE}: {step}",
        reason=outcome.reason,
        detail="" if is_raw and outcome.reason in ("unparsed", "bad input", "refused by server") else outcome.detail,
        raw_text="" if is_raw else outcome.text,
    )


def _check_goal(fields: dict[str, Any]) -> str | None:
    return next(
        (f"the field {name!r} is empty" for name in ("personality", "life_goal") if not fields[name].strip()), None
    )
