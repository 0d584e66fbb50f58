import { randomBytes } from 'node:crypto'

const LETTERS = 'abcdefghijklmnopqrstuvwxyz'
const CHARACTERS = `${LETTERS}0123456789`
const LENGTH = 24

/**
 * An id of the form of a CUID2, which clients know: 24 lower-case letters and digits, a letter first. All of it is chance, 123 bits:
 * it tells nothing of when or where it was made, and its first twelve are enough to be the only ones on a host.
 */
export function createId(): string {
  let id = characterOf(LETTERS)
  while (id.length < LENGTH) id += characterOf(CHARACTERS)
  return id
}

let chance = Buffer.alloc(0)
let at = 0

/** Each as likely as the others: a byte beyond the last whole round of the alphabet is passed over. */
function characterOf(alphabet: string): string {
  const limit = 256 - (256 % alphabet.length)
  for (;;) {
    if (at === chance.length) {
      chance = randomBytes(256)
      at = 0
    }
    const byte = chance[at++] as number
    if (byte < limit) return alphabet.charAt(byte % alphabet.length)
  }
}
