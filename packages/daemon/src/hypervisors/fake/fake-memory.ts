/** Memory layers of fake machines: a base is a directory with a name, for what is kept and what is removed. Nothing is in it. */
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import type { Compression } from '@dormouse/api/compression.ts'
import { AppError } from '@dormouse/api/errors.ts'
import { createId } from '../../lib/create-id.ts'
import type { Step } from '../../lib/step.ts'
import { checkState, DELTA, type DeltaSum, linkCapture, readManifest } from '../../memory/capture-files.ts'
import type { CompressedCapture, FreshBase, LayeredMemory, Leisure } from '../../memory/memory.ts'
import type { BaseRef, Capture, MachineRecord } from '../hypervisor.ts'
import type { FakeHost } from './fake-host.ts'

export interface FakeMemoryUses {
  readonly host: FakeHost
  readonly basesDir: string
  readonly isNeeded: (base: BaseRef) => boolean
  /** Never resolves once its daemon is dead. */
  readonly alive: () => Promise<void>
}

export class FakeMemory implements LayeredMemory {
  readonly #uses: FakeMemoryUses
  readonly #fresh = new Set<string>()

  constructor(uses: FakeMemoryUses) {
    this.#uses = uses
  }

  async consolidate(capture: Capture, step: Step, leisure?: Leisure): Promise<FreshBase> {
    const { host, basesDir, alive } = this.#uses
    const { delta } = await readManifest(capture.dir)
    const [kind, from = ''] = capture.base.split('/')
    if (delta === undefined || (kind === 'base' && !existsSync(join(basesDir, from)))) {
      throw new AppError('snapshot_unusable', `The base ${capture.base} or the delta on it is gone`)
    }
    const id = createId()
    const dir = join(basesDir, id)
    this.#fresh.add(id)
    try {
      mkdirSync(`${dir}.draft`, { recursive: true })
      await host.reach('consolidate', step)
      await alive()
      host.leisures.push(leisure)
      renameSync(`${dir}.draft`, dir)
    } catch (error) {
      this.#fresh.delete(id)
      rmSync(`${dir}.draft`, { recursive: true, force: true })
      throw error
    }
    return {
      ref: `base/${id}`,
      sum: '1'.repeat(16),
      settle: async () => {
        this.#fresh.delete(id)
        await this.sweepBases()
      },
    }
  }

  async compress(
    { dir, base }: Pick<Capture, 'dir' | 'base'>,
    { into, compression, isAlone }: { readonly into: string; readonly compression: Compression; readonly isAlone: boolean },
    step: Step,
  ): Promise<CompressedCapture | undefined> {
    const { host, basesDir, alive } = this.#uses
    const manifest = await readManifest(dir)
    const isOwn = isAlone && base.startsWith('base/')
    if (!isOwn && (manifest.delta === undefined || isDeepStrictEqual(manifest.delta.compression, compression))) return undefined
    if (base.startsWith('base/') && !existsSync(join(basesDir, base.slice('base/'.length))))
      throw new AppError('snapshot_unusable', `The base ${base} is gone`)
    await host.reach('compress', step)
    await alive()
    const delta: DeltaSum = { bytes: 1, pages: 0, sum: '0'.repeat(16), plainBytes: host.deltaBytes, compression }
    writeFileSync(join(into, DELTA), '.')
    const standing = isOwn ? ({ base: 'zero', baseSum: '0'.repeat(16) } as const) : { base, baseSum: manifest.baseSum }
    await linkCapture(dir, into, { ...manifest, ...standing, delta })
    return { base: standing.base, delta, [Symbol.asyncDispose]: async () => undefined }
  }

  async assertThere({ base }: Pick<MachineRecord, 'base'>): Promise<void> {
    const [kind, id = ''] = base.split('/')
    if (kind === 'base' && !existsSync(join(this.#uses.basesDir, id))) throw new AppError('snapshot_unusable', `The base ${base} is gone`)
  }

  async verify({ dir }: Pick<Capture, 'dir'>): Promise<void> {
    await checkState(dir, await readManifest(dir))
  }

  async release(): Promise<number> {
    return 0
  }

  async sweepBases(): Promise<void> {
    const { basesDir, isNeeded, alive } = this.#uses
    await alive()
    if (!existsSync(basesDir)) return
    for (const name of readdirSync(basesDir)) {
      const id = name.replace('.draft', '')
      if (!this.#fresh.has(id) && !isNeeded(`base/${id}`)) rmSync(join(basesDir, name), { recursive: true, force: true })
    }
  }
}
