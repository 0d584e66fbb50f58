import assert from 'node:assert/strict'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import { configOf } from '../config/config.ts'
import { FakeSysfs } from '../devices/fake-sysfs.ts'
import { checkAssets, findTools, mendOfCgroups } from './checks.ts'
import { examineConntrack } from './conntrack-check.ts'
import { examineDevices } from './device-checks.ts'
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

test('what is missing of cgroups is what is to be mended: a mount, rights, or the unit', () => {
  assert.match(mendOfCgroups('no cgroup file system is mounted for cpu, memory, pids', true), /^Mount it: .*mount -t cgroup2/)
  assert.match(mendOfCgroups('no cgroup file system is mounted for cpu', false), /Have root mount it.*mount -t cgroup2/)
  assert.match(mendOfCgroups("cpu: EACCES: permission denied, mkdir '/sys/fs/cgroup/dormouse'", false), /^Run the daemon as root/)
  const readOnly = mendOfCgroups("cpu: EROFS: read-only file system, mkdir '/sys/fs/cgroup/dormouse'", true)
  assert.match(readOnly, /container/)
  for (const mend of [readOnly, mendOfCgroups('/sys/fs/cgroup hands no controllers down', true)]) assert.doesNotMatch(mend, /as root/)
})

test('whether the kernel can say who is connected is told with what is missing', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'dm-netfilter-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const set = (name: string, value: number) => writeFileSync(join(dir, name), `${value}\n`)
  const answered = async () => ({ active: 0 })
  const refused = async () => {
    const cause = new Error("error the kernel's connections cannot be followed: Protocol not supported")
    throw new AppError('not_supported', 'The connections of guests cannot be counted', { cause })
  }
  const none = await examineConntrack(refused, dir)
  assert.match(none.says, /none falls asleep by itself: .*Protocol not supported$/)
  assert.match(none.mend ?? '', /modprobe -a nf_conntrack nf_conntrack_netlink/)
  set('nf_conntrack_count', 5)
  set('nf_conntrack_max', 100)
  assert.match((await examineConntrack(refused, dir)).mend ?? '', /modprobe nf_conntrack_netlink/)
  assert.match((await examineConntrack(answered, dir)).mend ?? '', /CONFIG_NF_CONNTRACK_EVENTS/)
  set('nf_conntrack_events', 0)
  assert.match((await examineConntrack(answered, dir)).mend ?? '', /nf_conntrack_events=2/)
  set('nf_conntrack_events', 2)
  assert.equal((await examineConntrack(answered, dir)).state, 'good')
  set('nf_conntrack_count', 95)
  assert.match((await examineConntrack(answered, dir)).says, /nearly full \(95 of 100\)/)
})

test('of devices it is said whether the host can give any, and what is missing where it offers half of it', async (t) => {
  const bare = new FakeSysfs()
  const gpu = { address: '0000:65:00.0', vendor: '10de', device: '26b9', classCode: '030200', group: 12 }
  const half = new FakeSysfs([gpu], { hasVfio: false })
  t.after(() => {
    bare[Symbol.dispose]()
    half[Symbol.dispose]()
  })
  const status = (uid: number, capabilities: string) =>
    writeFileSync(join(half.proc, 'self/status'), `Name:\tnode\nUid:\t${uid}\t${uid}\t${uid}\t${uid}\nCapEff:\t${capabilities}\n`)
  const told = async (sysfs = half) => (await examineDevices(sysfs, half.dir)).map(({ state, says }) => `${state}: ${says}`)
  assert.deepEqual(await told(bare), ['good: none of the host’s can be given to instances: no IOMMU is there, or it is off'])
  status(0, '000001ffffffffff')
  assert.deepEqual(await told(), ['poor: the kernel has no vfio-pci: no device can be given'])
  writeFileSync(join(half.dir, 'modules.dep'), 'kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n')
  assert.deepEqual(await told(), ['good: vfio-pci, and devices in 1 IOMMU group: dormouse device available lists what can be given'])
  writeFileSync(join(half.dev, 'vfio/vfio'), '')
  chmodSync(join(half.dev, 'vfio/vfio'), 0o600)
  status(0, '000001fffeffffff')
  assert.deepEqual(await told(), [
    `poor: only some may open ${half.dev}/vfio/vfio, and each VMM is a user of its own`,
    'poor: root may not let a VM lock its memory, which a device reaches by itself',
  ])
  status(1000, '0000000000000000')
  assert.match(String((await told())[1]), /by root alone/)
})
