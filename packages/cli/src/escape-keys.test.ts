import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { EscapeKeys } from './escape-keys.ts'

function type(...pieces: string[]): { text: string; left: boolean } {
  const keys = new EscapeKeys()
  let text = ''
  for (const piece of pieces) {
    const { forGuest, isLeaving } = keys.filter(Buffer.from(piece))
    text += Buffer.from(forGuest).toString()
    if (isLeaving) return { text, left: true }
  }
  return { text, left: false }
}

test('Enter, tilde, dot leaves, however the keys arrive', () => {
  assert.deepEqual(type('ls\r~.x'), { text: 'ls\r', left: true })
  assert.deepEqual(type('ls\r', '~', '.'), { text: 'ls\r', left: true })
  assert.deepEqual(type('~.'), { text: '', left: true })
})

test('a tilde that was no way out reaches the guest', () => {
  assert.deepEqual(type('\r~/bin'), { text: '\r~/bin', left: false })
  assert.deepEqual(type('\r~~.'), { text: '\r~.', left: false })
  assert.deepEqual(type('cd ~.'), { text: 'cd ~.', left: false })
  assert.deepEqual(type('\r', '~', '\r', '~', '.'), { text: '\r~\r', left: true })
})

test('without the sequence nothing is lost or added, but for a doubled tilde after Enter', () => {
  const key = fc.constantFrom('a', '\r', '~', 'é')
  fc.assert(
    fc.property(fc.array(fc.array(key).map((keys) => keys.join(''))), (pieces) => {
      const { text, left } = type(...pieces, 'end')
      assert.equal(left, false)
      assert.equal(text, `${pieces.join('')}end`.replace(/(^|\r)~~/g, '$1~'))
    }),
  )
})
