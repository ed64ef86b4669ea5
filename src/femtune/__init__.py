"""Learn to reason from questions and correct answers alone."""
