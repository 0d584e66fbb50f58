/** Volumes in and out, asked of a VMM that is made up: its guest lets go of a disk only when it wants to. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { silentLogger } from '../../log.ts'
import type { DiskSpec } from '../vm-spec.ts'
import { VmmRefusal } from '../vmm-api.ts'
import type { MachineDevices, PluggedDisk } from './control.ts'
import { PluggedDisks } from './disk-hotplug.ts'

const step = (ms = 20_000) => ({ signal: AbortSignal.timeout(ms), log: silentLogger })
const volume: DiskSpec = { role: 'volume-1', path: '/volumes/one', format: 'raw', readOnly: false }

interface Wishes {
  readonly rateGroups?: readonly string[]
  /** How often it is looked at before the guest lets go. */
  readonly looks?: number
  /** And from then on, before the VMM has closed the file. */
  readonly locks?: number
  readonly refuses?: boolean
  readonly version?: string
}

function houseOf({ rateGroups = [], looks = 0, locks = 0, refuses = false, version = '53.0.0' }: Wishes = {}) {
  const asked: unknown[] = []
  const disks = new Map([
    ['rootfs', 'rootfs'],
    ['overlay', 'overlay'],
    ['empty-2', 'empty-2'],
  ])
  const present = new Set(disks.values())
  const had = new Set(present)
  let left = 0
  let closing = 0
  const control = {
    async devices(): Promise<MachineDevices> {
      const kept = new Set(disks.values())
      for (const id of present) if (!kept.has(id) && left-- <= 0) present.delete(id)
      return { disks: new Map(disks), present: new Set(present), rateGroups: new Set(rateGroups) }
    },
    async addDisk(disk: PluggedDisk): Promise<void> {
      const { id, ...rest } = disk
      asked.push(rest)
      if (refuses) throw new VmmRefusal({ method: 'PUT', path: '/vm.add-disk' }, 500, 'no')
      assert.ok(id.startsWith(`${disk.serial}-`) && !had.has(id), 'no device had this name')
      had.add(id)
      disks.set(String(disk.serial), id)
      present.add(id)
    },
    async removeDevice(id: string): Promise<void> {
      asked.push('remove')
      assert.ok([...disks].some(([serial, one]) => one === id && disks.delete(serial)))
      left = looks
      closing = locks
    },
    async resizeDisk(id: string, bytes: number): Promise<void> {
      assert.ok(present.has(id))
      asked.push(`resize ${bytes}`)
    },
  }
  const shim = {
    answer: async (file: object): Promise<void> => void asked.push(file),
    extend: async (name: string, bytes: number): Promise<void> => {
      asked.push(`extend ${name} ${bytes}`)
    },
    refuse: async (name: string): Promise<void> => void asked.push(`refuse ${name}`),
    isLocked: async (): Promise<boolean> => closing-- > 0,
  }
  return { plugged: new PluggedDisks(control, shim, version), asked: () => asked.splice(0), present }
}

const answer = { name: 'volume-1', kind: 'rw', file: '/volumes/one' }
const device = { path: '/proc/dormouse/volume-1', readonly: false, serial: 'volume-1', image_type: 'Raw' }

test('a volume is found by its name before it is plugged, and is let go of by its guest before the name stands for nothing', async () => {
  const { plugged, asked, present } = houseOf({ looks: 3, locks: 2 })
  await plugged.insertDisk(volume, step())
  assert.deepEqual(asked(), [answer, device])
  await plugged.insertDisk(volume, step())
  assert.deepEqual(asked(), [], 'repeat is harmless')
  await plugged.growDisk('volume-1', 2 ** 30, step())
  await plugged.ejectDisk('volume-1', step())
  assert.deepEqual(asked(), [`extend volume-1 ${2 ** 30}`, `resize ${2 ** 30}`, 'remove', 'refuse volume-1'])
  assert.equal(present.size, 3)
  await plugged.ejectDisk('volume-1', step())
  assert.deepEqual(asked(), ['refuse volume-1'], 'repeat is harmless')
  await assert.rejects(plugged.growDisk('volume-1', 2 ** 31, step()), { code: 'not_found' })
  asked()
  await plugged.insertDisk(volume, step())
  assert.deepEqual(asked(), [answer, device])
})

test('it shares the rate of the other disks, where there is one', async () => {
  const { plugged, asked } = houseOf({ rateGroups: ['disks'] })
  await plugged.insertDisk(volume, step())
  assert.deepEqual(asked()[1], { ...device, rate_limit_group: 'disks' })
})

test('where a pause does not wait for disks, a volume does one thing after another as well', async () => {
  const { plugged, asked } = houseOf({ version: '52.0.0' })
  await plugged.insertDisk(volume, step())
  assert.deepEqual(asked()[1], { ...device, disable_io_uring: true, disable_aio: true })
})

test('one that its guest does not let go of is waited for, and its name is not given away', async () => {
  const { plugged, asked } = houseOf({ looks: 1_000_000 })
  await plugged.insertDisk(volume, step())
  asked()
  await assert.rejects(plugged.ejectDisk('volume-1', step(50)), { code: 'timed_out', message: /let go of the disk volume-1/ })
  assert.deepEqual(asked(), ['remove'])
  await assert.rejects(plugged.insertDisk(volume, step(50)), { code: 'timed_out' })
  assert.deepEqual(asked(), [])
})

test('one whose file the VMM has not closed yet is waited for as well', async () => {
  const { plugged, asked } = houseOf({ locks: 1_000_000 })
  await plugged.insertDisk(volume, step())
  asked()
  await assert.rejects(plugged.ejectDisk('volume-1', step(50)), { code: 'timed_out', message: /let go of the disk volume-1/ })
  await assert.rejects(plugged.insertDisk(volume, step(50)), { code: 'timed_out' })
  assert.deepEqual(asked(), ['remove'])
})

test('what the VMM does not take is let go of; a chain of layers is not tried', async () => {
  const { plugged, asked } = houseOf({ refuses: true })
  await assert.rejects(plugged.insertDisk(volume, step()), { code: 'internal_error', message: /did not take the disk volume-1/ })
  assert.deepEqual(asked(), [answer, device, 'refuse volume-1'])
  await assert.rejects(plugged.insertDisk({ ...volume, format: 'qcow2' }, step()), { code: 'not_supported' })
  assert.deepEqual(asked(), [])
})
