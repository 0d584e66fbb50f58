/** By what variables programs find an authority that they do not look for in the system's bundles; the files are guest/src/trust.c's. */

/** The authority alone: for those who trust it beside whom they trust anyway. */
const OWN = '/etc/dormouse/egress.pem'
/** All whom the image trusts, and it: for those who trust no one else then. */
const BUNDLE = '/etc/dormouse/ca-bundle.pem'

export const AUTHORITY_ENV: Readonly<Record<string, string>> = {
  // Node and Deno bring authorities of their own.
  NODE_EXTRA_CA_CERTS: OWN,
  DENO_CERT: OWN,
  // OpenSSL, and with it Python and Ruby; Go.
  SSL_CERT_FILE: BUNDLE,
  // Python's requests and pip bring authorities of their own, and the AWS SDKs; curl and git may have been built to look elsewhere.
  REQUESTS_CA_BUNDLE: BUNDLE,
  PIP_CERT: BUNDLE,
  AWS_CA_BUNDLE: BUNDLE,
  CURL_CA_BUNDLE: BUNDLE,
  GIT_SSL_CAINFO: BUNDLE,
}
