import { createHash } from 'node:crypto'
import { isIP, isIPv4 } from 'node:net'
import { AppError } from '@dormouse/api/errors.ts'
import { AUTHORITY_ENV } from './authority-env.ts'
import { FieldWriter } from './fields.ts'
import { signalNumber } from './signals.ts'
import { TAG, WORKLOAD } from './wire.ts'

/** All that a parked guest is told. Clock and entropy are added by the client at the moment it sends. */
export interface GuestConfig {
  readonly hostname: string
  /** 32 hex digits (machine-id(5)). */
  readonly machineId: string
  readonly network?: GuestNetworkConfig
  /** More lines for /etc/hosts, such as `10.0.0.9 db`. */
  readonly hosts?: readonly string[]
  /** A certificate in PEM that its programs are to trust as an authority. Variables by which they find it are added to their environment. */
  readonly authority?: string
  readonly workload: {
    readonly kind: 'exec' | 'systemd'
    readonly argv: readonly string[]
    readonly env: Readonly<Record<string, string>>
    readonly cwd: string
    /** As the image names it: `user`, `uid`, `user:group`, or empty for root. */
    readonly user: string
    readonly stopSignal: string
  }
  readonly disks: {
    /** False: what is written is kept in memory. */
    readonly overlay: boolean
    readonly modules: boolean
    readonly volumes: readonly GuestVolume[]
  }
}

export interface GuestVolume {
  readonly serial: string
  readonly mountPath: string
  readonly readOnly: boolean
  readonly fs: 'ext4'
  /** So much may be written; absent: all that there is room for. */
  readonly roomBytes?: number
}

interface GuestNetworkConfig {
  readonly mac: string
  readonly ipv4?: { readonly address: string; readonly prefix: number; readonly gateway?: string }
  readonly ipv6?: { readonly address: string; readonly prefix: number; readonly gateway?: string }
  readonly dns: readonly string[]
  readonly mtu?: number
}

/** Who a fork becomes, or a guest that woke elsewhere. What is absent stays; another machine-id makes it another machine. */
export interface GuestIdentity {
  readonly hostname?: string
  readonly machineId?: string
  readonly network?: GuestNetworkConfig
  readonly hosts?: readonly string[]
}

/** The configuration as fields, and an id of it: the same configuration twice has the same id. */
export function encodeConfig(config: GuestConfig): { fields: Buffer; id: Buffer } {
  const { workload, disks } = config
  if (workload.argv.length === 0)
    throw new AppError('invalid_request', 'There is no command to run: the image names none and neither does the request')
  const fields = new FieldWriter()
  writeIdentity(fields, config)
  fields
    .number(TAG.WORKLOAD_KIND, workload.kind === 'systemd' ? WORKLOAD.SYSTEMD : WORKLOAD.EXEC)
    .text(TAG.CWD, workload.cwd)
    .text(TAG.USER, workload.user)
    .number(TAG.STOP_SIGNAL, signalNumber(workload.stopSignal))
    .flag(TAG.OVERLAY, disks.overlay)
    .flag(TAG.MODULES, disks.modules)
  writeWords(fields, workload.argv, { ...(config.authority === undefined ? {} : AUTHORITY_ENV), ...workload.env })
  for (const volume of disks.volumes) fields.bytes(TAG.VOLUME, encodeVolume(volume))
  fields.optional(config.authority, (pem) => fields.text(TAG.AUTHORITY, checkAuthority(pem)))
  const bytes = fields.finish()
  return { fields: bytes, id: createHash('sha256').update(bytes).digest() }
}

export const encodeVolume = ({ serial, mountPath, readOnly, fs, roomBytes }: GuestVolume): Buffer =>
  new FieldWriter()
    .text(TAG.SERIAL, serial)
    .text(TAG.PATH, checkText(mountPath))
    .flag(TAG.READ_ONLY, readOnly)
    .text(TAG.FS, fs)
    .optional(roomBytes, (bytes, fields) => fields.number(TAG.SIZE, bytes))
    .finish()

export function writeIdentity(fields: FieldWriter, { hostname, machineId, hosts, network }: GuestIdentity): void {
  fields.optional(hostname, (name) => fields.text(TAG.HOSTNAME, name)).optional(machineId, (id) => fields.text(TAG.MACHINE_ID, id))
  for (const line of hosts ?? []) fields.text(TAG.HOSTS_LINE, checkText(line))
  if (!network) return
  fields.bytes(TAG.MAC, macBytes(network.mac)).optional(network.mtu, (mtu) => fields.number(TAG.MTU, mtu))
  const { ipv4, ipv6 } = network
  if (ipv4) fields.bytes(TAG.ADDRESS4, addressBytes(ipv4.address, 4)).number(TAG.PREFIX4, ipv4.prefix)
  if (ipv4?.gateway !== undefined) fields.bytes(TAG.GATEWAY4, addressBytes(ipv4.gateway, 4))
  if (ipv6) fields.bytes(TAG.ADDRESS6, addressBytes(ipv6.address, 6)).number(TAG.PREFIX6, ipv6.prefix)
  if (ipv6?.gateway !== undefined) fields.bytes(TAG.GATEWAY6, addressBytes(ipv6.gateway, 6))
  for (const server of network.dns) {
    if (!isIP(server)) throw new AppError('invalid_request', `${JSON.stringify(server)} is not the address of a name server`)
    fields.text(TAG.DNS, server)
  }
}

/** A command and its environment, for "go" and exec alike. */
export function writeWords(fields: FieldWriter, argv: readonly string[], env: Readonly<Record<string, string>>): void {
  for (const word of argv) fields.text(TAG.ARG, checkText(word))
  for (const [name, value] of Object.entries(env)) {
    if (name === '' || name.includes('='))
      throw new AppError('invalid_request', `${JSON.stringify(name)} is not a name for an environment variable`)
    fields.text(TAG.ENV, checkText(`${name}=${value}`))
  }
}

// execve(2): one word holds at most 128 KiB with its NUL.
const WORD_MAX = 131071

/** A text that can go to a kernel: no NUL in it, and not too long. */
export function checkText(text: string): string {
  if (text.includes('\0')) throw new AppError('invalid_request', 'A command, path or environment variable holds a NUL')
  if (Buffer.byteLength(text) > WORD_MAX)
    throw new AppError('invalid_request', `A word of a command or environment is longer than ${WORD_MAX} bytes`)
  return text
}

// One of ours is as long as the names of its hosts; the guest takes no more than this (guest/src/request.h).
const AUTHORITY_MAX = 32768
const PEM = /^-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n -]+\n-----END CERTIFICATE-----\n$/

/** Text of PEM and nothing else, in whole lines: the guest puts it into files that others parse. */
function checkAuthority(pem: string): string {
  if (pem.length > AUTHORITY_MAX || !PEM.test(pem)) {
    throw new AppError(
      'invalid_request',
      `The authority that a guest is to trust is no certificate in PEM of ${AUTHORITY_MAX} bytes at most`,
    )
  }
  return pem
}

function macBytes(mac: string): Buffer {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(mac)) throw new AppError('invalid_request', `${JSON.stringify(mac)} is not a MAC address`)
  return Buffer.from(mac.replaceAll(':', ''), 'hex')
}

/** Throws `invalid_request` for what is no address of that family. */
export function addressBytes(address: string, family: 4 | 6): Buffer {
  if (isIP(address) !== family) throw new AppError('invalid_request', `${JSON.stringify(address)} is not an IPv${family} address`)
  if (isIPv4(address)) return Buffer.from(address.split('.').map(Number))
  return ipv6Bytes(address)
}

function ipv6Bytes(address: string): Buffer {
  // The URL parser writes every form in one way: hex groups, at most one `::`.
  const plain = new URL(`http://[${address}]/`).hostname.slice(1, -1)
  const [head = '', tail] = plain.split('::')
  const groups = (text: string | undefined) => (text ? text.split(':') : [])
  const front = groups(head)
  const back = groups(tail)
  const all = tail === undefined ? front : [...front, ...Array<string>(8 - front.length - back.length).fill('0'), ...back]
  const bytes = Buffer.alloc(16)
  for (const [i, group] of all.entries()) bytes.writeUInt16BE(Number.parseInt(group, 16), i * 2)
  return bytes
}
