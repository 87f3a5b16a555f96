"""New names for anonymised people: unique in a run, and sharing nothing with the names they replace."""

import random
from collections.abc import Iterator, Sequence

from matrix_dspy.text import words
from matrix_dspy.types import Profile


def _split(names: str) -> tuple[str, ...]:
    return tuple(names.split())


WOMEN = _split("""
    Adela Alma Anouk Astrid Beata Berta Brena Calla Clea Cosima Dagny Delia Edda Elara Elke Enid Etta Farah
    Fenna Fiora Freya Gelsa Greta Halima Hedda Hester Ilka Ines Iris Jalila Jella Jorun Kaia Keiko Kenza Lale
    Leona Liesel Lotte Mabel Malin Marit Meera Mirela Nella Nesta Noor Odile Orla Paloma Petra Ragna Ramona Rhea
    Sabela Saskia Senna Sigrid Sunniva Tamar Thea Tilda Tora Una Valda Vera Viola Wanda Wilma Xenia Yara Yusra
    Zelda Zora
""")
MEN = _split("""
    Alban Amos Anton Arlo Aurel Benno Boris Bruno Carel Casimir Cecil Conrad Damir Desmond Dorian Edwin Eike
    Eldon Emeric Esben Fabian Ferris Flavio Gareth Gideon Gunnar Hanno Helmer Hugo Idris Imre Ingram Isidor Ivor
    Jarek Jonas Jude Kamal Karim Kilian Lambert Levin Linus Lorcan Ludo Magnus Marek Matteo Milo Nadim Nico Nils
    Olav Oswin Otis Pascal Rafael Rasmus Remy Rufus Selim Silas Tarek Timon Ulric Vidar Walid Yorick Zeno
""")
FIRST_NAMES = WOMEN + MEN
LAST_NAMES = _split("""
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
""")


def choose_pseudonyms(profiles: Sequence[Profile], seed: int) -> list[str]:
    """Return a new name for each profile, all different; none shares a word with that profile's own names."""
    taken = {profile.name.lower() for profile in profiles}
    chosen: list[str] = []
    for profile in profiles:
        own = set(words(" ".join((profile.name, *profile.handles))))
        generator = random.Random(f"{seed}/{profile.profile_id}")
        drawn = _draw_names(generator, _fitting_names(profile))
        name = next(name for name in drawn if name.lower() not in taken and not own & set(words(name)))
        taken.add(name.lower())
        chosen.append(name)
    return chosen


def _fitting_names(profile: Profile) -> Sequence[str]:
    """Return first names that fit the pronouns of the description, so that the anonymised text stays consistent."""
    found = words(profile.description)
    she, he = (sum(found.count(word) for word in forms) for forms in (("she", "her", "hers"), ("he", "him", "his")))
    return WOMEN if she > he else MEN if he > she else WOMEN + MEN


def _draw_names(generator: random.Random, first_names: Sequence[str]) -> Iterator[str]:
    for attempt in range(100_000):
        middle = f" {generator.choice('ABCDEFGHJKLMNPRSTW')}." if attempt > 40 else ""
        yield f"{generator.choice(first_names)}{middle} {generator.choice(LAST_NAMES)}"
    raise ValueError("no name is left")
