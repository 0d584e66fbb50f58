import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import { silentLogger } from '../../log.ts'
import type { GoldenBoot } from '../../memory/memory.ts'
import { LoadFailed, wakeGolden } from './golden-wake.ts'

const step = () => ({ signal: AbortSignal.timeout(20_000), log: silentLogger })

/** Wakes end as `fates` say, in turn; what happened is in `told`. */
function house(fates: readonly ('wakes' | Error)[], { isNeeded = false } = {}) {
  const told: string[] = []
  const discarded = new Set<string>()
  let round = 0
  return {
    told,
    uses: {
      golden: async (again: boolean): Promise<GoldenBoot> => {
        const key = again ? 'other' : 'first'
        if (isNeeded && discarded.has(key)) throw new AppError('snapshot_unusable', 'it cannot be made anew while something stands on it')
        const discard = async () => void discarded.add(key)
        return { key, discard, [Symbol.dispose]: () => told.push(`let go of ${key}`) } as unknown as GoldenBoot
      },
      wake: async ({ key }: GoldenBoot) => {
        told.push(key)
        const fate = fates[round++]
        if (fate !== 'wakes') throw fate
        return key
      },
    },
    discarded,
  }
}

const failed = () => new LoadFailed(new AppError('internal_error', 'Firecracker did not start the VM', { detail: { vmm_log: 'words' } }))

test('one VMM that ends over a golden boot says nothing of that', async () => {
  const { uses, told, discarded } = house([failed(), 'wakes'])
  assert.equal(await wakeGolden(uses, step()), 'first')
  assert.deepEqual([told, [...discarded]], [['first', 'first', 'let go of first'], []])
})

test('one that is not woken twice is made anew', async () => {
  const { uses, told } = house([failed(), failed(), 'wakes'])
  assert.equal(await wakeGolden(uses, step()), 'first')
  assert.deepEqual(told, ['first', 'first', 'first', 'let go of first', 'let go of first'])
})

test('where VMs stand on it another is made beside it, also for who comes later', async () => {
  const { uses, told } = house([failed(), failed(), 'wakes', 'wakes'], { isNeeded: true })
  assert.equal(await wakeGolden(uses, step()), 'other')
  assert.equal(await wakeGolden(uses, step()), 'other')
  assert.deepEqual(
    told.filter((what) => !what.startsWith('let')),
    ['first', 'first', 'other', 'other'],
  )
})

test('when none is woken the VMM’s words are told, and what is not of the load is not tried again', async () => {
  await assert.rejects(wakeGolden(house([failed(), failed(), failed()]).uses, step()), {
    code: 'internal_error',
    detail: { vmm_log: 'words' },
  })
  const { uses, told } = house([new AppError('internal_error', 'there is no TAP')])
  await assert.rejects(wakeGolden(uses, step()), /there is no TAP/)
  assert.deepEqual(told, ['first', 'let go of first'])
})
