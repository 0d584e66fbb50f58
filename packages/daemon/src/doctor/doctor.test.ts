import assert from 'node:assert/strict'
import { test } from 'node:test'
import { report } from './doctor.ts'

test('a report names what is missing and how to mend it, and says whether instances can run', () => {
  const text = report([
    { what: 'host', state: 'good', says: 'Linux' },
    { what: 'disk clones', state: 'poor', says: 'no reflink', mend: 'Use XFS' },
    { what: 'programs', state: 'bad', says: 'qemu-img is not installed', mend: 'apt-get install qemu-utils' },
  ])
  assert.match(text, /^ok {4}host {9}Linux$/m)
  assert.match(text, /^note {2}disk clones {2}no reflink$/m)
  assert.match(text, /^FAIL {2}programs .*\n +→ apt-get install qemu-utils$/m)
  assert.match(text, /Instances cannot run yet: 1 thing is missing\.\n$/)
  assert.match(report([{ what: 'host', state: 'good', says: 'Linux' }]), /Instances can run on this host\.\n$/)
})
