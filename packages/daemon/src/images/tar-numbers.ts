import { invalidImage } from './tar-entry.ts'

/**
 * A number of a header field: octal digits between spaces and NULs, or base-256 when the first bit is set (GNU and star, for what
 * octal cannot hold). An empty field is 0. Source: GNU tar manual, "Basic Tar Format" and "Extensions".
 */
export function readNumber(block: Buffer, offset: number, length: number, what: string): number {
  const first = block[offset] ?? 0
  if (first >= 0x80) return readBase256(block, offset, length, what)
  let at = offset
  const end = offset + length
  while (at < end && (block[at] === 0x20 || block[at] === 0)) at++
  let value = 0
  for (; at < end; at++) {
    const byte = block[at] ?? 0
    if (byte === 0x20 || byte === 0) break
    if (byte < 0x30 || byte > 0x37) throw invalidImage(`A tar header has a ${what} that is no number`)
    value = value * 8 + (byte - 0x30)
  }
  for (; at < end; at++) {
    if (block[at] !== 0x20 && block[at] !== 0) throw invalidImage(`A tar header has a ${what} that is no number`)
  }
  // 12 octal digits are 36 bits at most.
  return value
}

/** Like `readNumber`, where less than zero makes no sense. */
export function readCount(block: Buffer, offset: number, length: number, what: string): number {
  const value = readNumber(block, offset, length, what)
  if (value < 0) throw invalidImage(`A tar header has a ${what} below zero`)
  return value
}

function readBase256(block: Buffer, offset: number, length: number, what: string): number {
  const negative = ((block[offset] ?? 0) & 0x40) !== 0
  // Two's complement over all bits but the marker.
  let value = negative ? -1n : 0n
  value = (value << 7n) | BigInt((block[offset] ?? 0) & 0x7f)
  for (let at = offset + 1; at < offset + length; at++) value = (value << 8n) | BigInt(block[at] ?? 0)
  return safe(Number(value), what)
}

/** A decimal number of a PAX record: digits only. */
export function parseCount(text: string, what: string): number {
  if (!/^\d{1,20}$/.test(text)) throw invalidImage(`A PAX record has a ${what} that is no number`)
  return safe(Number(text), what)
}

/** A PAX time, `-12.345`: whole seconds, rounded down. */
export function parseTime(text: string, what: string): number {
  const match = /^(-?)(\d{1,18})(?:\.(\d{0,32}))?$/.exec(text)
  if (!match) throw invalidImage(`A PAX record has a ${what} that is no time`)
  const whole = Number(match[2])
  const isFraction = /[1-9]/.test(match[3] ?? '')
  const seconds = match[1] === '-' ? -whole - (isFraction ? 1 : 0) : whole
  return safe(seconds === 0 ? 0 : seconds, what)
}

function safe(value: number, what: string): number {
  if (!Number.isSafeInteger(value)) throw invalidImage(`A tar header has a ${what} beyond every limit`)
  return value
}
