"""From a signed request to a response: connections, the SSRF guard, name resolution."""
