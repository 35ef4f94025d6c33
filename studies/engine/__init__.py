"""What `python studies/sweep.py` runs on: one file for each question.

what is a study?                     plans (the record), spaces (what varies), targets (what is optimised)
who searches?                        search (Optuna), journals (its file), locks (who is alive)
who trains?                          trials (one), workers (the loop), jobs (what every worker is given)
who looks after them?                crew (the driver), clerk (the tracker's)
what does a terminal show?           preview (--dry-run), progress
what is left when it ends?           finalists (the best trials), tables, charts, pages, finale
"""
