"""What `python studies/sweep.py` runs on: one file for each question.

what is a study?                     plans (the record), spaces (what varies), targets (what is optimised)
who searches?                        search (Optuna), samplers (who proposes), journals (its file), locks (who is alive)
who trains?                          trials (one), stacks (several), workers (the loop), jobs (what each is given)
who starts them?                     engines (which), forked (processes of this machine), actors (of a Ray cluster)
who looks after them?                driver (queues, buries, goes on), clerk (the tracker's)
what does a terminal show?           preview (--dry-run), progress
what is left when it ends?           finalists (the best trials), tables, charts, pages, finale
"""
