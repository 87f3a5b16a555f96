"""From a data set to a tuned model: SFT and DPO on TRL, with the paper's settings (METHOD 4).

`settings` says how, `encoding` and `preparing` turn rows into tokens and say which are learnt, `folder` keeps what a
training is and how far it got, `fitting` trains, `card` writes it up, `tuning` is what is called.
"""
