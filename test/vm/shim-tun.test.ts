/** A VMM that opens /dev/net/tun itself finds its TAP there, though it is in a network with nothing in it; and that can be shut. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { readExit, Shim } from '../../packages/daemon/src/hypervisors/shim.ts'
import { inOwnNetwork } from '../harness/own-network.ts'
import { artefacts, makeStep } from '../harness/qemu-driver.ts'
import { scratchDir } from '../harness/scratch.ts'

const ip = (...argv: readonly string[]): string => execFileSync('ip', argv, { encoding: 'utf8' })
const statistic = async (tap: string, name: string): Promise<number> =>
  Number(await readFile(`/sys/class/net/${tap}/statistics/${name}`, 'utf8'))

if (inOwnNetwork(import.meta.filename)) {
  test('it is the TAP of the shim that it opens, shut at first, and shut again on request', async (t) => {
    const dir = await scratchDir(t)
    const program = join(dir, 'open-tun')
    execFileSync('gcc', ['-O2', '-static', '-o', program, join(import.meta.dirname, '../harness/open-tun.c')])
    execFileSync('chmod', ['755', dir])
    const runDir = join(dir, 'run')
    await mkdir(runDir, { mode: 0o700 })
    ip('tuntap', 'add', 'dev', 'tap7', 'mode', 'tap', 'vnet_hdr')
    const log = join(dir, 'vmm.log')
    const shim = await Shim.launch(
      {
        shimPath: artefacts.shimPath,
        runDir,
        user: { uid: 654321, gid: 654321 },
        logs: [{ name: 'vmm', file: log, maxBytes: 1 << 20 }],
        isolateNetwork: true,
        answersTun: true,
        vmm: { argv: [program], descriptors: [{ number: 18, kind: 'tap', name: 'tap7' }] },
      },
      makeStep(20_000),
    )
    t.after(async () => {
      await shim.kill()
      shim[Symbol.dispose]()
    })
    const said = async (word: RegExp): Promise<number> => (await readFile(log, 'utf8')).match(word)?.length ?? 0
    const until = (what: string, look: () => Promise<boolean>) => pollUntil(what, look, makeStep(20_000))

    await until('it to have opened it', async () => (await said(/^opened tap7, 0 here$/gm)) === 1)
    ip('link', 'set', 'dev', 'tap7', 'up')
    ip('addr', 'add', '192.0.2.1/24', 'dev', 'tap7')
    ip('neigh', 'add', '192.0.2.2', 'lladdr', '02:00:00:00:00:02', 'dev', 'tap7')
    const socket = createSocket('udp4')
    t.after(() => void socket.close())
    /** What is sent to it comes to that end. */
    const ends = (what: string, look: () => Promise<number>) => async (): Promise<void> => {
      const before = await look()
      await until(what, async () => {
        socket.send('frame', 9, '192.0.2.2')
        return (await look()) > before
      })
    }
    const isDropped = ends('frames to be dropped', () => statistic('tap7', 'tx_dropped'))
    const arrives = ends('frames to arrive', () => said(/^frame$/gm))

    await isDropped()
    assert.equal(await said(/^frame$/gm), 0)
    for (let round = 0; round < 2; round++) {
      await shim.openTap(makeStep())
      await shim.openTap(makeStep())
      await arrives()
      await shim.shutTap(makeStep())
      await shim.shutTap(makeStep())
      await isDropped()
    }
    await shim.kill()
    assert.equal((await readExit(runDir))?.kind, 'signaled')
    // Another may have it now.
    ip('link', 'delete', 'dev', 'tap7')
  })

  test('a TAP that is not there keeps the VMM from starting', async (t) => {
    const dir = await scratchDir(t)
    await assert.rejects(
      Shim.launch(
        {
          shimPath: artefacts.shimPath,
          runDir: dir,
          logs: [{ name: 'vmm', file: join(dir, 'vmm.log'), maxBytes: 1 << 20 }],
          isolateNetwork: true,
          answersTun: true,
          vmm: { argv: ['true'], descriptors: [] },
        },
        makeStep(20_000),
      ),
      /no TAP was named/,
    )
  })
}
