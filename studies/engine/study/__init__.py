"""What a study searches and optimises: plan, space, target."""
