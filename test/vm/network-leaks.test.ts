/** Round after round of instances that come and go: the host is as it was. In network namespaces of the test's own. */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { after, before, test } from 'node:test'
import { isDeepStrictEqual } from 'node:util'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { type Lab, makeLab, nft } from '../harness/bridged-lab.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { importImage } from '../harness/import-image.ts'
import { inOwnNetwork } from '../harness/own-network.ts'
import { cgroupsOf, processesNaming } from '../harness/processes.ts'

const IMAGE = 'test/leaks:latest'
const AT_ONCE = 4

if (inOwnNetwork(import.meta.filename)) {
  let lab: Lab
  let image: string
  before(async () => {
    lab = await makeLab()
    image = (await makeBusyboxImage(join(lab.dir, 'image'), { cmd: ['/bin/sleep', '100000'] })).path
  })
  after(() => lab?.[Symbol.asyncDispose]())

  // As many as somebody has time for, with real VMs too.
  const many = Number(process.env.DORMOUSE_TEST_ROUNDS ?? 0)
  for (const [driver, network, rounds] of [
    ['fake', 'bridged', 500],
    ['fake', 'user', 500],
    ['qemu', 'bridged', many || 20],
    ['qemu-microvm', 'bridged', many || 4],
    ['qemu-microvm', 'user', many || 12],
  ] as const) {
    test(`after ${rounds} rounds of create and delete (${driver}, ${network}) the counts of all that there is are as before`, async () => {
      const dir = join(lab.dir, `${driver}-${network}`)
      await using daemon = await startDaemon({ dir, driver, env: { DORMOUSE_NETWORK: network } })
      await importImage(daemon, image, IMAGE)
      // What the first of a kind makes for those that come after stays: a golden boot, a template, compiled code.
      for (let round = 0; round < AT_ONCE; round++) await oneRound(daemon, round)
      const before = await countsOf(daemon)
      let left = rounds
      const work = async (): Promise<void> => {
        while (left-- > 0) await oneRound(daemon, left)
      }
      await Promise.all(Array.from({ length: AT_ONCE }, work))
      const isSame = async (): Promise<boolean> => isDeepStrictEqual(await countsOf(daemon), before)
      await pollUntil('the counts to be as before', isSame, { signal: AbortSignal.timeout(20_000) }).catch(() => undefined)
      assert.deepEqual(await countsOf(daemon), before)
    })
  }

  async function oneRound({ client }: DaemonProcess, round: number): Promise<void> {
    const name = `round-${round}`
    const ports = [{ host_port: 0, guest_port: 80 }]
    const rates = round % 4 === 0 ? { bandwidth_download: '10MB/s', bandwidth_upload: '10MB/s' } : {}
    await client.post('/instances', { name, image: IMAGE, size: '256MB', vcpus: 1, overlay_size: '32MB', network: { ports, ...rates } })
    await client.delete(`/instances/${name}`)
  }

  async function countsOf(daemon: DaemonProcess): Promise<object> {
    const { dir, pid, client, paths } = daemon
    assert.deepEqual(await client.get('/instances'), [])
    const db = new DatabaseSync(paths.database, { readOnly: true })
    const rows = (table: string): unknown => db.prepare(`SELECT count(*) AS count FROM ${table}`).get()?.count
    const descriptors = readdirSync(`/proc/${pid}/fd`).map((fd) => linkOf(`/proc/${pid}/fd/${fd}`))
    try {
      return {
        processes: (await processesNaming(dir)).length + childrenOf(pid).length,
        devices: readdirSync('/sys/class/net').sort(),
        rules: nft('list', 'ruleset').split('\n').length,
        mounts: readFileSync(`/proc/${pid}/mountinfo`, 'utf8').split('\n').length,
        files: ['data', 'run'].map((name) => readdirSync(join(dir, name), { recursive: true }).length),
        // What it listens on, and clients that stay connected for a while: as many as there were at once, whichever way it went.
        sockets: descriptors.filter((it) => it.startsWith('socket:')).length <= 4 + AT_ONCE,
        descriptors: descriptors.filter((it) => !it.startsWith('socket:')).length,
        cgroups: cgroupsOf(dir).list(),
        leases: rows('leases'),
        ports: rows('published_ports'),
      }
    } finally {
      db.close()
    }
  }

  const childrenOf = (pid: number): string[] =>
    readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
      .trim()
      .split(' ')
      .filter((child) => child !== '')

  function linkOf(path: string): string {
    try {
      return readlinkSync(path)
    } catch {
      return 'gone'
    }
  }
}
