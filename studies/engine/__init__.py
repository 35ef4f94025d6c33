"""The engine of `python studies/sweep.py`: a folder for each question.

study/       what is searched and optimised: plan, space, target
processes/   locks that show who is alive, calls in the background
search/      who proposes settings and who stops them: queue, states, repeats, samplers, pruners, the journal
workers/     who trains: loop, one trial, its outcome and its log, job
driver/      who supervises workers and keeps the tracker in step; progress, and the text of --dry-run
launch/      who starts workers: processes of this machine, actors of a Ray cluster
report/      what a finished study leaves: the best trials, table, figures, page, finish
"""
