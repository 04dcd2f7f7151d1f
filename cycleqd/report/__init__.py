"""The report of an evolution: pictures and one self-contained HTML page, from the records in S3."""
