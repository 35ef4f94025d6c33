"""What the commands in studies/ do once their options are read: these modules import torch, MLflow and Optuna."""
