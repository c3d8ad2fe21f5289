"""Who sent this: SPF, DKIM and DMARC through libraries."""
