import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { configOf } from '../config/config.ts'
import { checkAssets, findTools } from './checks.ts'
import { report } from './doctor.ts'
import { droppingTables } from './network-checks.ts'

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

test('a program that is missing is named with its package and what does not work; without resize2fs instances still run', (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'dm-tools-'))
  t.after(() => rmSync(dir, { recursive: true }))
  for (const program of ['qemu-system-x86_64', 'qemu-img', 'mkfs.ext4']) writeFileSync(join(dir, program), '')
  assert.deepEqual(findTools(['', dir]), [
    {
      what: 'programs',
      state: 'poor',
      says: 'resize2fs is not installed: disks cannot grow',
      mend: 'apt-get install --no-install-recommends e2fsprogs',
    },
    {
      what: 'programs',
      state: 'bad',
      says: 'tar2sqfs is not installed: no image can be imported or pulled',
      mend: 'apt-get install --no-install-recommends squashfs-tools-ng',
    },
  ])
  for (const program of ['resize2fs', 'tar2sqfs']) writeFileSync(join(dir, program), '')
  assert.deepEqual(
    findTools([dir]).map(({ state }) => state),
    ['good'],
  )
})

test('a guest part that is missing is named with its path and what makes it', async (t) => {
  const assetsDir = mkdtempSync(join(tmpdir(), 'dm-assets-'))
  t.after(() => rmSync(assetsDir, { recursive: true }))
  const findings = await checkAssets({ ...configOf(new Map()), assetsDir })
  const { says, mend } = findings.find((finding) => finding.says.startsWith('the kernel ')) ?? assert.fail('nothing is said of the kernel')
  assert.ok(says.startsWith(`the kernel is missing: ${assetsDir}/`), says)
  assert.match(mend ?? '', /scripts\/setup\.sh/)
  assert.deepEqual(
    findings.filter(({ state }) => state === 'bad').map((finding) => finding.says.split(' ')[1]),
    ['kernel', 'initrd', 'shim', 'networkHelper'],
  )
  assert.match(report(findings), /Instances cannot run yet: 4 things are missing/)
})

test('tables of others that drop what is forwarded are named', () => {
  const listing = `table ip filter {
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy drop;
\t}
}
table inet dormouse0 {
\tchain through {
\t\ttype filter hook forward priority filter; policy accept;
\t}
}
table bridge x {
\tchain f {
\t\ttype filter hook forward priority filter; policy drop;
\t}
}
`
  assert.deepEqual(droppingTables(listing), ['ip filter'])
  assert.deepEqual(droppingTables(''), [])
})
