/** Disks of several layers under real guests: frozen while one writes, shared, and flattened. */
import assert from 'node:assert/strict'
import { mkdir, readdir, readlink, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import type { AppError } from '@dormouse/api/errors.ts'
import { Disks } from '../../packages/daemon/src/disks/disks.ts'
import { formatOf } from '../../packages/daemon/src/disks/layer.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import type { Vm } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import { MICROVM, Q35 } from '../../packages/daemon/src/hypervisors/qemu/boards.ts'
import type { DiskSpec } from '../../packages/daemon/src/hypervisors/vm-spec.ts'
import { Paths } from '../../packages/daemon/src/paths.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { makeStep, type QemuUnderTest, qemuUnderTest } from '../harness/qemu-driver.ts'
import { makeRootfs, type RunningGuest, runGuest } from '../harness/running-guest.ts'

const BYTES = 1 << 30
/** Appends to /counter for ever, each number on the disk before the next: one that is seen says that the one before it is there. */
const COUNT = '(i=0; while :; do i=$((i+1)); echo $i >> /counter; sync; done) >/dev/null 2>&1 </dev/null & echo begun'
const LAST = 'tail -n 1 /counter'

class House {
  readonly driver: QemuUnderTest
  readonly disks: Disks
  readonly paths: Paths
  readonly #rootfs: string

  private constructor(driver: QemuUnderTest, rootfs: string) {
    this.driver = driver
    this.#rootfs = rootfs
    this.paths = new Paths({ dataDir: join(driver.dir, 'data'), runDir: '/run/x' })
    this.disks = new Disks({ paths: this.paths, layers: { unnamed: (names) => [...names], frozen: () => [] } })
  }

  static async open(t: TestContext, board: typeof Q35): Promise<House> {
    const driver = await qemuUnderTest(board.hypervisor, agentManners)
    t.after(() => driver[Symbol.asyncDispose]())
    await mkdir(join(driver.dir, 'image'))
    const house = new House(driver, await makeRootfs(join(driver.dir, 'image')))
    await mkdir(house.paths.disksDir, { recursive: true, mode: 0o711 })
    return house
  }

  specs(chain: readonly string[]): DiskSpec[] {
    const [top, ...backing] = chain.map((name) => ({ path: this.paths.disk(name), format: formatOf(name) }))
    assert.ok(top)
    return [
      { role: 'rootfs', path: this.#rootfs, format: 'raw', readOnly: true },
      { role: 'overlay', ...top, backing, readOnly: false },
    ]
  }

  run(chain: readonly string[]): Promise<RunningGuest> {
    return runGuest(this.driver, this.#rootfs, { disks: this.specs(chain) })
  }

  /** Freezes the disk of a guest that runs, and says how long it was held for that. */
  async pivot(vm: Vm, chain: readonly string[]): Promise<{ source: readonly string[]; copy: readonly string[]; ms: number }> {
    const [own, other] = [await this.disks.newLayer(BYTES, {}), await this.disks.newLayer(BYTES, {})]
    const pivot = await vm.preparePivot('overlay', { path: this.paths.disk(own) }, makeStep())
    const startedAt = performance.now()
    await vm.pause(makeStep())
    await pivot.commit(makeStep())
    await vm.resume(makeStep())
    return { source: [own, ...chain], copy: [other, ...chain], ms: performance.now() - startedAt }
  }

  async assertClean(chain: readonly string[]): Promise<void> {
    const flat = this.paths.disk(await this.disks.flatten(chain, { step: makeStep() }))
    // 1: the journal was replayed, as after a power cut.
    await runCommand(['e2fsck', '-p', flat], { step: makeStep(), okCodes: [0, 1] })
    // It ends with 0 only if there is nothing to mend. What it prints names the file, whose id may spell any word.
    await runCommand(['e2fsck', '-f', '-n', flat], { step: makeStep() })
  }
}

/** Which of the layers the VMM has open, removed ones too. */
async function layersOpenIn({ handle }: Vm, paths: Paths): Promise<string[]> {
  const dir = `/proc/${handle.vmm.pid}/fd`
  const files = await Promise.all((await readdir(dir)).map((fd) => readlink(join(dir, fd)).catch(() => '')))
  return [...new Set(files.filter((file) => file.startsWith(paths.disksDir)))].sort()
}

const count = async (guest: RunningGuest): Promise<number> => Number(await guest.sh(LAST))

for (const board of [Q35, MICROVM]) {
  test(`on ${board.hypervisor} a disk is frozen again and again under a guest that writes, which goes on, and each copy is of its moment`, async (t) => {
    const house = await House.open(t, board)
    await house.disks.createOverlay('origin.raw', BYTES, { step: makeStep() })
    let chain: readonly string[] = ['origin.raw']
    await using source = await house.run(chain)
    assert.equal(await source.sh(COUNT), 'begun')
    await pollUntil('the guest to count', async () => (await count(source)) > 0, makeStep())
    const copies: (readonly string[])[] = []
    for (let round = 0; round < 3; round++) {
      const before = await count(source)
      const { source: next, copy, ms } = await house.pivot(source.vm, chain)
      const after = await count(source)
      t.diagnostic(`held for ${ms.toFixed(1)} ms, at ${before} to ${after}`)
      chain = next
      copies.push(copy)
      await pollUntil('the source to go on', async () => (await count(source)) > after, makeStep())
      // Beside the source, over the same layers, without a lock in the way.
      await using other = await house.run(copy)
      const found = await count(other)
      assert.ok(before - 1 <= found && found <= after, `${before} - 1 ≤ ${found} ≤ ${after}`)
      await other.sh('echo mine >> /counter; sync')
      assert.equal(await other.sh(LAST), 'mine')
    }
    assert.equal(chain.length, 4)
    for (const copy of copies) await house.assertClean(copy)

    // What one VM writes no other has, neither the top nor a layer below.
    for (const taken of [chain, [`${chain[1]}`, ...chain.slice(2)]]) {
      // Booted, since one that wakes takes its locks only when it goes on.
      const spec = await house.driver.makeSpec({ disks: house.specs(taken), freshBoot: true })
      await assert.rejects(house.driver.hypervisor.start(spec, makeStep()), ({ detail }: AppError) => /" lock/.test(JSON.stringify(detail)))
      assert.deepEqual(await house.driver.leftovers(spec), [])
    }
  })

  test(`on ${board.hypervisor} a chain is flattened under its guest, which goes on, and the layers below are let go of`, async (t) => {
    const house = await House.open(t, board)
    await house.disks.createOverlay('origin.raw', BYTES, { step: makeStep() })
    let chain: readonly string[] = ['origin.raw']
    await using guest = await house.run(chain)
    for (const name of ['one', 'two', 'three']) {
      await guest.sh(`dd if=/dev/urandom of=/${name} bs=1M count=8; sync`)
      chain = (await house.pivot(guest.vm, chain)).source
    }
    // A layer that nobody will use is let go of with the others.
    await guest.vm.preparePivot('overlay', { path: house.paths.disk(await house.disks.newLayer(BYTES, {})) }, makeStep())
    const adopted = await house.driver.hypervisor.reconnect(guest.vm.handle, makeStep())
    assert.ok(adopted)
    const sums = 'sync; echo 3 > /proc/sys/vm/drop_caches; cat /one /two /three | sha256sum'
    const before = await guest.sh(sums)
    assert.equal(await guest.sh(COUNT), 'begun')

    const cancelled = { ...makeStep(), signal: AbortSignal.timeout(1) }
    await adopted.flatten('overlay', cancelled).catch(() => undefined)
    await adopted.flatten('overlay', makeStep())
    const left = [`${chain[0]}`, 'origin.raw']
    assert.deepEqual(await layersOpenIn(adopted, house.paths), left.map((name) => house.paths.disk(name)).sort())
    const at = await count(guest)
    await pollUntil('the guest to go on', async () => (await count(guest)) > at, makeStep())
    assert.equal(await guest.sh(sums), before)
    await guest.vm.kill()
    for (const name of chain.slice(1, -1)) await rm(house.paths.disk(name))
    await house.assertClean(left)
    await using again = await house.run(left)
    assert.equal(await again.sh(sums), before)
  })

  test(`on ${board.hypervisor} a chain that is flattened live is the same as one that is flattened at rest`, async (t) => {
    const house = await House.open(t, board)
    await house.disks.createOverlay('origin.raw', BYTES, { step: makeStep() })
    let chain: readonly string[] = ['origin.raw']
    {
      await using guest = await house.run(chain)
      for (const script of ['dd if=/dev/urandom of=/a bs=1M count=9', 'dd if=/dev/urandom of=/b bs=100k count=9; rm /a', 'rm /b']) {
        await guest.sh(`${script}; sync`)
        chain = (await house.pivot(guest.vm, chain)).source
      }
    }
    const atRest = await house.disks.flatten(chain, { step: makeStep() })
    // Its guest is parked and has mounted nothing.
    const vm = await house.driver.hypervisor.start(await house.driver.makeSpec({ disks: house.specs(chain) }), makeStep())
    await vm.flatten('overlay', makeStep()).finally(() => vm.kill())
    const afterwards = await house.disks.flatten([`${chain[0]}`, 'origin.raw'], { step: makeStep() })
    await runCommand(['cmp', house.paths.disk(atRest), house.paths.disk(afterwards)], { step: makeStep() })
    assert.ok((await stat(house.paths.disk(atRest))).blocks * 512 < 64 << 20)
  })
}
