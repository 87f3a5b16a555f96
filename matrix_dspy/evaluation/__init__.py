"""How good a model is: answers, judged or checked, and figures with their intervals."""
