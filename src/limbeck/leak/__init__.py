"""What a distilled set or its soft labels reveal: memorization experiments, and the audit of what training records leave behind."""
