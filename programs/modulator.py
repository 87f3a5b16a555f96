"""Programs of a group's modulator: who comes to know of what (METHOD 2.4)."""

import dspy
from pydantic import BaseModel, Field

from matrix_dspy.programs.base import Program


class Delivery(BaseModel):
    """Which members come to know of one event."""

    event: int = Field(ge=0, description="number of the event")
    members: list[int] = Field(description="numbers of the members who come to know of it; may be empty")


class RouteWithinGroup(dspy.Signature):
    """Decide which members of a group would come to know of an action by one of them.

    Judge as an impartial observer of ordinary life: who could plausibly see it, hear of it, be told of it or be
    touched by its effects, given who they are, where they live and whom they deal with? Interest alone is not enough
    without a way for the news to reach them; a public announcement reaches those who follow such things, a private
    act only those involved, a secret one nobody. Do not send everything to everybody: nobody is a right answer, and
    often the right one. The actor is never a receiver. Give the reason first.
    """

    members: list[str] = dspy.InputField(desc="the other members, each with its number")
    action: str = dspy.InputField(desc="what was done, and by whom")
    reason: str = dspy.OutputField(desc="one sentence: how the news travels, or why it does not")
    receivers: list[int] = dspy.OutputField(desc="numbers of the members who come to know; may be empty")


class RouteBetweenGroups(dspy.Signature):
    """Decide which other groups would learn of an action.

    A group is described by what its members are and what has lately happened among them. Choose the groups, three at
    the most, that news of this action would reach by ordinary ways (trade, customers, officials, neighbours, press,
    common acquaintances) and for whom it changes something: something they could use, must answer, or would be harmed
    by. Everyday acts reach no other group; no group is a right answer, and often the right one. Give the reason first.
    """

    groups: list[str] = dspy.InputField(desc="the other groups, each with its number")
    action: str = dspy.InputField(desc="what was done, and by whom")
    reason: str = dspy.OutputField(desc="one sentence: how the news gets there, or why it does not")
    receivers: list[int] = dspy.OutputField(desc="numbers of at most three groups; may be empty")


class ReceiveEvents(dspy.Signature):
    """Decide which members of a group come to know of each event that reached the group from outside.

    For every event, in the order given, list the members who would be the ones to hear of it, given who they are and
    whom they deal with: usually one or two, sometimes nobody, rarely all. Judge each event by itself.
    """

    members: list[str] = dspy.InputField(desc="the members, each with its number")
    events: list[str] = dspy.InputField(desc="events from outside, each with its number")
    deliveries: list[Delivery] = dspy.OutputField(desc="one entry for each event")


class IntraRouter(Program):
    """An action and the other members to those who come to know of it."""

    signature = RouteWithinGroup


class InterRouter(Program):
    """An action and other groups' descriptions to the groups that learn of it."""

    signature = RouteBetweenGroups


class ReceptionRouter(Program):
    """Events from outside and the members to who observes which."""

    signature = ReceiveEvents
