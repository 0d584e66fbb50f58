/**
 * An authority of one instance's own, and what it signs: the certificates by which its proxy speaks for the hosts that a credential is for.
 * Where the credentials name their hosts, the authority is good for those alone (RFC 5280, 4.2.1.10), so that a guest which trusts it
 * trusts it with nothing else. Its key never leaves the host.
 */
import { createHash, createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto'
import { around, bits, integer, octets, oid, sequence, set, TRUE, tagged, time, utf8 } from './der.ts'

/** Both in PEM. */
export interface Authority {
  readonly certificate: string
  /** PKCS #8. */
  readonly key: string
}

const OID = {
  commonName: '2.5.4.3',
  ecPublicKey: '1.2.840.10045.2.1',
  ecdsaWithSha256: '1.2.840.10045.4.3.2',
  subjectKeyId: '2.5.29.14',
  keyUsage: '2.5.29.15',
  altName: '2.5.29.17',
  basicConstraints: '2.5.29.19',
  nameConstraints: '2.5.29.30',
  authorityKeyId: '2.5.29.35',
  extendedKeyUsage: '2.5.29.37',
  serverAuth: '1.3.6.1.5.5.7.3.1',
} as const

const DAY_MS = 86_400_000
// A guest's clock may be behind.
const EARLY_MS = DAY_MS
// Longer than an instance lives: a guest that runs cannot be given another.
const AUTHORITY_MS = 3650 * DAY_MS
// What is issued is as old as its proxy at most. Apple's limit for any certificate is 398 days.
const LEAF_MS = 90 * DAY_MS

/** `hosts` as hosts.ts writes them; undefined: good for every host. */
export function makeAuthority(name: string, hosts: readonly string[] | undefined, nowMs: number): Authority {
  const { publicKey, privateKey } = makeKey()
  const certificate = certificateOf({
    subject: nameOf(name),
    issuer: nameOf(name),
    publicKey,
    signer: privateKey,
    notBeforeMs: nowMs - EARLY_MS,
    notAfterMs: nowMs + AUTHORITY_MS,
    extensions: [
      // A CA, and none below it.
      critical(OID.basicConstraints, sequence(TRUE, integer(Buffer.of(0)))),
      // keyCertSign, the sixth bit.
      critical(OID.keyUsage, bits(Buffer.of(0b0000_0100), 2)),
      extension(OID.extendedKeyUsage, sequence(oid(OID.serverAuth))),
      ...(hosts === undefined ? [] : [critical(OID.nameConstraints, constraintsOf(hosts))]),
      extension(OID.subjectKeyId, octets(keyIdOf(publicKey))),
      extension(OID.authorityKeyId, sequence(tagged(0, keyIdOf(publicKey)))),
    ],
  })
  return { certificate, key: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string }
}

/** Issues certificates for hosts, all for one key that is made for it. */
export class Issuer {
  /** What a TLS server presents them with, PEM. */
  readonly key: string
  readonly #authority: { readonly certificate: string; readonly key: KeyObject; readonly subject: Uint8Array; readonly keyId: Uint8Array }
  readonly #publicKey: KeyObject

  constructor({ certificate, key }: Authority) {
    const signer = createPrivateKey(key)
    const publicKey = createPublicKey(signer)
    this.#authority = { certificate, key: signer, subject: subjectOf(certificate), keyId: keyIdOf(publicKey) }
    const own = makeKey()
    this.#publicKey = own.publicKey
    this.key = own.privateKey.export({ type: 'pkcs8', format: 'pem' }) as string
  }

  /** PEM. `host` as hosts.ts writes names. */
  issue(host: string, nowMs: number): string {
    const { key, subject, keyId } = this.#authority
    return certificateOf({
      // The name stands in the extension alone: here there is room for 64 letters, and names are longer.
      subject: sequence(),
      issuer: subject,
      publicKey: this.#publicKey,
      signer: key,
      notBeforeMs: nowMs - EARLY_MS,
      notAfterMs: nowMs + LEAF_MS,
      extensions: [
        critical(OID.basicConstraints, sequence()),
        // digitalSignature, the first bit.
        critical(OID.keyUsage, bits(Buffer.of(0b1000_0000), 7)),
        extension(OID.extendedKeyUsage, sequence(oid(OID.serverAuth))),
        // Critical, since there is no subject (RFC 5280, 4.2.1.6).
        critical(OID.altName, sequence(tagged(2, Buffer.from(host, 'latin1')))),
        extension(OID.authorityKeyId, sequence(tagged(0, keyId))),
      ],
    })
  }
}

interface Contents {
  readonly subject: Uint8Array
  readonly issuer: Uint8Array
  readonly publicKey: KeyObject
  readonly signer: KeyObject
  readonly notBeforeMs: number
  readonly notAfterMs: number
  readonly extensions: readonly Uint8Array[]
}

function certificateOf({ subject, issuer, publicKey, signer, notBeforeMs, notAfterMs, extensions }: Contents): string {
  const algorithm = sequence(oid(OID.ecdsaWithSha256))
  const serial = randomBytes(16)
  // Positive, and of one length.
  serial[0] = ((serial[0] ?? 0) & 0x7f) | 0x40
  const body = sequence(
    around(0, integer(Buffer.of(2))),
    integer(serial),
    algorithm,
    issuer,
    sequence(time(notBeforeMs), time(notAfterMs)),
    subject,
    publicKey.export({ type: 'spki', format: 'der' }),
    around(3, sequence(...extensions)),
  )
  return pemOf(sequence(body, algorithm, bits(sign('sha256', body, signer))))
}

/** Names below `x`, and `x` itself: what stands for a pattern and for a name alike. */
function constraintsOf(hosts: readonly string[]): Buffer {
  // A name that is no one's (RFC 6761, 6.4): without any, all would be permitted.
  const trees = [...new Set((hosts.length === 0 ? ['invalid'] : hosts).map((host) => host.replace(/^\*\./, '')))]
  const permitted = trees.map((tree) => sequence(tagged(2, Buffer.from(tree, 'latin1'))))
  // A constraint of one kind leaves the others open: no address is good either. All of both families, each with its mask.
  const excluded = [8, 32].map((length) => sequence(tagged(7, Buffer.alloc(length))))
  return sequence(around(0, ...permitted), around(1, ...excluded))
}

const makeKey = (): { publicKey: KeyObject; privateKey: KeyObject } => generateKeyPairSync('ec', { namedCurve: 'P-256' })

const nameOf = (text: string): Buffer => sequence(set(sequence(oid(OID.commonName), utf8(text.slice(0, 64)))))

const extension = (id: string, value: Uint8Array): Buffer => sequence(oid(id), octets(value))
const critical = (id: string, value: Uint8Array): Buffer => sequence(oid(id), TRUE, octets(value))

/** As RFC 7093 has it, first method: of the key's own bits, the first 160 of their hash. */
function keyIdOf(key: KeyObject): Buffer {
  const point = key.export({ type: 'spki', format: 'der' }).subarray(-65)
  return createHash('sha256').update(point).digest().subarray(0, 20)
}

const pemOf = (der: Uint8Array): string =>
  `-----BEGIN CERTIFICATE-----\n${(
    Buffer.from(der)
      .toString('base64')
      .match(/.{1,64}/g) ?? []
  ).join('\n')}\n-----END CERTIFICATE-----\n`

/** The subject of a certificate of ours, as it stands there: what it issues names it byte for byte. */
function subjectOf(pem: string): Uint8Array {
  const der = Buffer.from(pem.replace(/-----[^-]+-----|\s/g, ''), 'base64')
  // certificate, body; then version, serial, algorithm, issuer: of an authority that signs itself the issuer is the subject.
  let at = enter(der, enter(der, 0))
  for (let skipped = 0; skipped < 3; skipped++) at = behind(der, at)
  return der.subarray(at, behind(der, at))
}

/** Where the content of the element at `at` begins. */
function enter(der: Buffer, at: number): number {
  const first = der[at + 1] ?? 0
  return at + 2 + (first < 0x80 ? 0 : first & 0x7f)
}

function behind(der: Buffer, at: number): number {
  const first = der[at + 1] ?? 0
  const length = first < 0x80 ? first : der.readUIntBE(at + 2, first & 0x7f)
  return enter(der, at) + length
}
