import { randomBytes } from 'node:crypto'
import { chmodSync, closeSync, fsyncSync, mkdirSync, openSync, readFileSync, statSync, writeSync } from 'node:fs'
import { dirname } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import type { Logger } from '../log.ts'

const MIN_LENGTH = 16

/** The secret that tokens are signed with; made with mode 0600 on the first start. Throws when it is too short to be one. */
export function loadOrCreateSecret(path: string, log: Logger): Uint8Array {
  const existing = read(path)
  if (existing === undefined) return create(path)
  if (existing.length < MIN_LENGTH) {
    throw new AppError('invalid_request', `The token secret in ${path} has less than ${MIN_LENGTH} characters`, {
      hint: 'Remove the file to have one made; tokens that were made with it will no longer hold',
    })
  }
  if ((statSync(path).mode & 0o077) !== 0) {
    log.warn({ path }, 'the token secret could be read by others; its mode is now 0600')
    chmodSync(path, 0o600)
  }
  return existing
}

function read(path: string): Uint8Array | undefined {
  try {
    return Buffer.from(readFileSync(path, 'latin1').trim(), 'latin1')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new AppError('invalid_request', `The token secret in ${path} cannot be read`, { cause: error })
  }
}

function create(path: string): Uint8Array {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
  const secret = randomBytes(32).toString('hex')
  const file = openSync(path, 'wx', 0o600)
  try {
    writeSync(file, secret)
    fsyncSync(file)
  } finally {
    closeSync(file)
  }
  return Buffer.from(secret, 'latin1')
}
