/** What a guest's disks move: measured in the guest itself, over the lives that a limit has to outlast. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { endProcessesNaming } from '../harness/processes.ts'
import { makeStep } from '../harness/qemu-driver.ts'
import { Scratch } from '../harness/scratch.ts'

const MB = 2 ** 20

for (const board of ['qemu', 'qemu-microvm'] as const) {
  describe(`the rate of disks, ${board}`, () => {
    let scratch: Scratch
    let daemon: DaemonProcess
    const begin = (): Promise<DaemonProcess> =>
      startDaemon({ dir: join(scratch.path, 'd'), driver: board, env: { DORMOUSE_POOL_SIZE: '1', DORMOUSE_LOG_LEVEL: 'debug' } })
    before(async () => {
      scratch = await Scratch.make()
      daemon = await begin()
      const image = await makeBusyboxImage(scratch.path, { cmd: ['/bin/sleep', '1000000'] })
      await importImage(daemon, image.path, 'box')
    })
    after(async () => {
      await daemon?.stop()
      await endProcessesNaming(scratch.path)
      await scratch[Symbol.asyncDispose]()
    })

    /** Megabytes per second that the guest writes past its cache; what the burst allows is used up first. */
    const measure = async (name: string, rate: number, dir = '/root'): Promise<number> => {
      const seconds = 3
      const write = (megabytes: number): string => `dd if=/dev/zero of=${dir}/f bs=1M count=${megabytes} oflag=direct 2>/dev/null`
      const script = `set -e; ${write(5 * rate)}; cut -d' ' -f1 /proc/uptime; ${write(seconds * rate)}; cut -d' ' -f1 /proc/uptime`
      const { exitCode, stdout, stderr } = await execOverApi(daemon.socket, name, { command: ['/bin/sh', '-c', script] })
      assert.equal(exitCode, 0, stderr)
      const [began = 0, ended = 0] = stdout.trim().split('\n').map(Number)
      return (seconds * rate) / (ended - began)
    }
    const assertRate = async (name: string, rate: number, dir?: string): Promise<void> => {
      // More is a limit that does not hold. Less may be a host that had no time for it: it is measured again then.
      const measured: number[] = []
      do {
        measured.push(await measure(name, rate, dir))
        assert.ok(Number(measured.at(-1)) < rate * 1.15, `${name} writes ${measured} MB/s, not ${rate}`)
      } while (Number(measured.at(-1)) < rate * 0.85 && measured.length < 3)
      assert.ok(Number(measured.at(-1)) > rate * 0.85, `${name} writes ${measured} MB/s, not ${rate}`)
    }
    const post = (path: string, body: object = {}): Promise<unknown> => daemon.client.post(path, body)
    const patch = (name: string, body: object): Promise<{ disk_io_bps?: string }> => daemon.client.patch(`/instances/${name}`, body)

    test('it is kept to from the start, changed at once, and kept over a nap, a fork and a restart of the daemon', async () => {
      const shape = { image: 'box', vcpus: 1, size: '256MB', overlay_size: '512MB' }
      await post('/instances?wait=running', { name: 'slow', ...shape, disk_io_bps: '8MB/s' })
      await assertRate('slow', 8)
      assert.equal((await patch('slow', { disk_io_bps: '16MB/s' })).disk_io_bps, '16MB/s')
      await assertRate('slow', 16)
      await post('/instances/slow/standby')
      await post('/instances/slow/restore')
      await assertRate('slow', 16)
      await post('/instances/slow/fork', { name: 'fork', from_running: true })
      // Its disk has another top now.
      await Promise.all([assertRate('slow', 16), assertRate('fork', 16)])
      await daemon.kill()
      daemon = await begin()
      await assertRate('slow', 16)
      assert.equal((await patch('slow', { disk_io_bps: '0' })).disk_io_bps, undefined)
      assert.ok((await measure('slow', 16)) > 32, 'a limit that was taken away still holds')
      for (const name of ['slow', 'fork']) await daemon.client.delete(`/instances/${name}`)
    })

    test('one that waited for a create keeps to it too, and all disks have one budget', { timeout: 240_000 }, async () => {
      const shape = { image: 'box', vcpus: 1, size: '256MB', overlay_size: '512MB', disk_io_bps: String(8 * MB) }
      await post('/instances?wait=running', { name: 'before', ...shape })
      const isWaiting = async (): Promise<boolean> => {
        const { runtimes } = await daemon.client.get<{ runtimes: { name: string; waiting?: number }[] }>('/capabilities')
        return runtimes.some(({ name, waiting }) => name === board && waiting === 1)
      }
      await pollUntil('a VM to wait', isWaiting, makeStep(120_000))
      await post('/instances?wait=running', { name: 'waited', ...shape })
      assert.match(
        (await daemon.log())
          .trim()
          .split('\n')
          .filter((line) => line.includes('"VM started"'))
          .at(-1) ?? '',
        /"origin":"pool"/,
      )
      await assertRate('waited', 8)
      // The disk of the kernel's modules, while nothing is left of what a pause allows.
      const script = [
        'for disk in /sys/block/vd*; do [ "$(cat $disk/serial)" = modules ] && modules=/dev/$(basename $disk); done',
        'dd if=/dev/zero of=/root/f bs=1M count=40 oflag=direct 2>/dev/null',
        'cut -d" " -f1 /proc/uptime; dd if=$modules of=/dev/null bs=1M iflag=direct 2>&1 | head -1; cut -d" " -f1 /proc/uptime',
      ]
      const { stdout } = await execOverApi(daemon.socket, 'waited', { command: ['/bin/sh', '-c', script.join('\n')] })
      const [began = 0, records = '', ended = 0] = stdout.trim().split('\n')
      const megabytes = Number.parseInt(String(records), 10)
      const measured = megabytes / (Number(ended) - Number(began))
      assert.ok(megabytes >= 1 && measured < 8 * 1.5, `${megabytes} MB read at ${measured} MB/s: ${stdout}`)
      await daemon.client.delete('/instances/before')
      await daemon.client.delete('/instances/waited')
    })

    test('a volume that comes while it runs is in its budget, and a VM made ready for a sleeper has the rate of its wake', {
      timeout: 240_000,
    }, async () => {
      const shape = { image: 'box', vcpus: 1, size: '256MB', overlay_size: '512MB', disk_io_bps: '8MB/s' }
      await post('/instances?wait=running', { name: 'has', ...shape })
      await post('/volumes', { name: 'late', size_gb: 1 })
      await post('/instances/has/volumes/late', { mount_path: '/late' })
      await assertRate('has', 8, '/late')
      const { id } = await daemon.client.get<{ id: string }>('/instances/has')
      const logged = async (...words: string[]): Promise<string[]> =>
        (await daemon.log()).split('\n').filter((line) => words.every((word) => line.includes(word)))
      await post('/instances/has/standby')
      await pollUntil('a VM to be ready for the sleeper', async () => (await logged('"a VM waits"', id)).length > 0, makeStep(120_000))
      await patch('has', { disk_io_bps: '12MB/s' })
      await post('/instances/has/restore')
      assert.match((await logged('"VM restored"')).at(-1) ?? '', /"origin":"pool"/)
      await assertRate('has', 12)
      await assertRate('has', 12, '/late')
      await daemon.client.delete('/instances/has')
      await daemon.client.delete('/volumes/late')
    })
  })
}
