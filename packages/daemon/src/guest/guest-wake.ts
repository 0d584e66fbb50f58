import { createHash, randomBytes } from 'node:crypto'
import { FieldWriter } from './fields.ts'
import { type GuestIdentity, writeIdentity } from './guest-config.ts'
import { TAG } from './wire.ts'

/** What a guest is told that was restored from a capture. Clock and entropy are added by the client at the moment it sends. */
export interface WakeRequest {
  /** Who it is from now on. Absent: who it was. */
  readonly identity?: GuestIdentity
  /** TCP connections that lead out of the machine end with an error. Listeners stay, and what stays within the machine. */
  readonly closeConnections?: boolean
  /** The neighbours on its network are told where its addresses are now. */
  readonly announce?: boolean
  /** Names this one restore, so that it is done once however often it is asked for. Absent: each time. */
  readonly token?: string
}

export function encodeWake({ identity = {}, closeConnections = false, announce = false, token }: WakeRequest): {
  fields: Buffer
  id: Buffer
} {
  const fields = new FieldWriter()
  writeIdentity(fields, identity)
  fields.flag(TAG.CLOSE_CONNECTIONS, closeConnections).flag(TAG.ANNOUNCE, announce)
  const id = token === undefined ? randomBytes(32) : createHash('sha256').update(token).digest()
  return { fields: fields.finish(), id }
}
