"""The rehearsal: a seeded, rule-based stand-in for a language model, and a server for it.

`engine` is the engine, `server` puts it behind an address. `prompt` and `schema` read what is asked, `author` chooses
a writer by the wanted fields (`writers`), and the rest is what is written and how.
"""
