"""Whether replies keep verifiable constraints (IFEval, arXiv 2311.07911), by checkers of our own.

`checkers` has the kinds of constraint and the strict and loose verdicts, `structure` counts what they ask for,
`languages` tells languages, `scores` makes accuracies of verdicts.
"""
