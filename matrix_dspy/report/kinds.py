"""The kinds of data and the recipes there are, for people."""

from collections.abc import Iterator

from matrix_dspy.config import RECIPES, list_chains, list_kinds, list_recipes, load_kind, load_recipe, load_stages
from matrix_dspy.errors import ConfigError, boundary, did_you_mean


def describe_kinds() -> Iterator[str]:
    """Yield a line for every kind, recipe and chain of recipes."""
    yield "kinds (generate --kind NAME):"
    for name in list_kinds():
        kind = load_kind(name)
        checks = f", checks: {', '.join(kind.checks)}" if kind.checks else ""
        yield f"  {name:10} {kind.describe} ({kind.shape}, {kind.type}{checks})"
    yield "recipes (generate --recipe NAME):"
    for name in list_recipes():
        config = load_recipe(name)
        made = f"{config.n:,} rows of {config.synthesis.kind} from {config.population.n_agents:,} agents"
        yield f"  {name:22} {made}"
    yield "chains of recipes; with type1-sft and type2-sft the six of arXiv 2410.14251:"
    for name in list_chains():
        yield f"  {name:22} {', then '.join(load_stages(name))}"
    yield "a kind of your own: kinds sft > mine.toml, change it, generate --kind mine.toml"


def read_kind_file(name: str) -> str:
    """Return a shipped kind's TOML file as it stands.

    Raises:
        ConfigError: there is no such kind.
    """
    if name not in list_kinds():
        raise ConfigError(f"no kind {name!r}; {did_you_mean(name, list_kinds())}")
    path = RECIPES / "kinds" / f"{name}.toml"
    with boundary(ConfigError, f"read {str(path)!r}"):
        return path.read_text(encoding="utf-8")
