"""New names for anonymised people: unique in a run, and sharing nothing with the names they replace."""

import random
from collections.abc import Iterator, Sequence

from matrix_dspy.text import words
from matrix_dspy.types import Profile

_FIRST_NAMES = """
    Adela Alban Alma Amos Anouk Anton Arlo Astrid Aurel Beata Benno Berta Boris Brena Bruno Calla Carel Casimir
    Cecil Clea Conrad Cosima Dagny Damir Delia Desmond Dorian Edda Edwin Eike Elara Eldon Elke Emeric Enid Esben
    Etta Fabian Farah Fenna Ferris Fiora Flavio Freya Gareth Gelsa Gideon Greta Gunnar Hadley Halima Hanno Hedda
    Helmer Hester Hugo Idris Ilka Imre Ines Ingram Iris Isidor Ivor Jadwin Jalila Jarek Jella Jonas Jorun Jude
    Kaia Kamal Karim Keiko Kenza Kilian Lale Lambert Leona Levin Liesel Linus Lorcan Lotte Ludo Mabel Magnus
    Malin Marek Marit Matteo Meera Milo Mirela Nadim Nella Nesta Nico Nils Noor Odile Olav Orla Oswin Otis
    Paloma Pascal Petra Quinn Rafael Ragna Ramona Rasmus Remy Rhea Rufus Sabela Saskia Selim Senna Sigrid Silas
    Sunniva Tamar Tarek Thea Tilda Timon Tora Ulric Una Valda Vera Vidar Viola Walid Wanda Wilma Xenia Yara
    Yorick Yusra Zelda Zeno Zora
"""
_LAST_NAMES = """
    Abbing Ackroyd Alderney Almgren Amsel Anselm Arkady Ashgrove Averin Balog Bannister Barden Belmont Bexley
    Birkeland Blackwood Bodnar Borealis Brandt Brightwell Bruun Calloway Carrow Castell Cavendar Chaudry Clement
    Cordova Coulter Crane Dahlin Dalgaard Danforth Darrow Delacroy Denholm Dreyer Dunmore Eastham Eklund Elsner
    Engstrom Fairley Falk Farrow Felder Fenwick Ferrand Fjeld Foley Fontaine Gallard Garnier Gilroy Glanville
    Goran Granger Grieve Hagen Halloran Hartmoor Haskell Hawthorn Hedlund Hoang Holloway Idowu Ibsen Ironside
    Ivarsen Jansky Jarrow Jurgens Kaplan Karlsen Keating Kessler Kimura Kinsey Kovar Lachlan Lagrange Lindqvist
    Lockhart Lomax Lovell Lysander Mandel Marchetti Marlow Maynard Mercer Merrow Molnar Moreau Nakano Nordahl
    Norwood Novak Oakley Okoro Olander Orsini Ostberg Padgett Palmquist Paxton Pelletier Pereira Pomeroy Quillan
    Ravn Redmond Reyes Rosmer Rowntree Sabatier Sandoval Santoro Selwyn Severin Shaw Sinclair Soren Stanhope
    Sterling Sundby Talbot Tanaka Thackeray Thorne Tolland Ueda Ulriksen Vance Varga Vasiliou Verhoeven
    Wakefield Wendel Westbrook Whitlock Winther Wolcott Yates Yilmaz Zeller
"""
FIRST_NAMES = tuple(_FIRST_NAMES.split())
LAST_NAMES = tuple(_LAST_NAMES.split())


def choose_pseudonyms(profiles: Sequence[Profile], seed: int) -> list[str]:
    """Return a new name for each profile, all different; none shares a word with that profile's own names."""
    taken = {profile.name.lower() for profile in profiles}
    chosen: list[str] = []
    for profile in profiles:
        own = set(words(" ".join((profile.name, *profile.handles))))
        generator = random.Random(f"{seed}/{profile.profile_id}")
        name = next(name for name in _draw_names(generator) if name.lower() not in taken and not own & set(words(name)))
        taken.add(name.lower())
        chosen.append(name)
    return chosen


def _draw_names(generator: random.Random) -> Iterator[str]:
    for attempt in range(100_000):
        middle = f" {generator.choice('ABCDEFGHJKLMNPRSTW')}." if attempt > 40 else ""
        yield f"{generator.choice(FIRST_NAMES)}{middle} {generator.choice(LAST_NAMES)}"
    raise ValueError("no name is left")
