"""What a study leaves: ranking, table, figures, page, the best trials measured again."""
