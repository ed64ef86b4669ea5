"""The parts of an answer: text without its markup, numbers with units, dates, labels of choices."""
