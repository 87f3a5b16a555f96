"""Programs that read a raw profile: the only two that ever see one (METHOD 2.1)."""

import dspy

from matrix_dspy.programs.base import Program


class AnonymiseProfile(dspy.Signature):
    """Rewrite a person's profile so that nobody could tell who it is, while it stays the same kind of person.

    Use the pseudonym wherever the person is named; never use the original name or any part of it. Remove or generalise
    everything that points to one individual: other people's names, user names, e-mail addresses, phone numbers, links,
    street addresses, employers, schools and rare titles, exact dates, and every number of six or more digits. Replace
    them by something of the same sort ("a regional hospital", "a friend", "last spring"), not by brackets or stars.

    Keep what makes the person interesting to simulate: occupation, stage of life, kind of place, interests, opinions,
    worries, tone of voice. Keep the description in the grammatical person it was written in and about as long as it
    was. Rewrite the history item by item, in the same order and number, each saying the same thing in the same voice.
    Invent nothing that the profile does not suggest. If the history is empty, return an empty list.
    """

    pseudonym: str = dspy.InputField(desc="the new name to use throughout")
    name: str = dspy.InputField(desc="the original name, which must not appear in your answer")
    description: str = dspy.InputField(desc="the person's self-description")
    history: list[str] = dspy.InputField(desc="past posts or actions, oldest first")
    anonymous_description: str = dspy.OutputField(desc="the description, rewritten")
    anonymous_history: list[str] = dspy.OutputField(desc="the history, rewritten item by item")


class CheckPrivacy(dspy.Signature):
    """Decide whether an anonymised profile could still be traced to the original person.

    Read as somebody who knows the original, or who can search the web. The profile is identifiable if it keeps the
    original name or a recognisable part of it, a user name, contact detail, link, exact address, a named employer or
    school, or a combination of details so rare that it fits one person. Ordinary traits shared by many people
    (occupation, age group, hobby, country) do not identify anybody. Say first what you looked at, then decide.
    """

    name: str = dspy.InputField(desc="the original name")
    description: str = dspy.InputField(desc="the original description")
    history: list[str] = dspy.InputField(desc="the original history")
    anonymous_description: str = dspy.InputField(desc="the description to check")
    anonymous_history: list[str] = dspy.InputField(desc="the history to check")
    reason: str = dspy.OutputField(desc="one sentence: the telling detail, or why there is none")
    is_identifiable: bool = dspy.OutputField(desc="True if the person could be identified")


class Anonymiser(Program):
    """Raw profile to anonymous description and history."""

    signature = AnonymiseProfile


class PrivacyChecker(Program):
    """Raw and anonymous profile to a yes or no on whether the person can be found."""

    signature = CheckPrivacy
