"""sparsefleet energy report: runs, boards' profiles and kept samples as one page, and as CSV and JSON."""
