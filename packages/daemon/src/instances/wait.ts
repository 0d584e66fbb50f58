import { AppError } from '@dormouse/api/errors.ts'
import { type InstanceState, isResting } from '@dormouse/api/instance-states.ts'
import type { Instance, InstanceId, WaitResult } from './instance.ts'
import { restartOutlook } from './restart-policy.ts'

export interface WaitUses {
  /** Calls the listener when the instance has changed, and when nothing is under way for it any more. */
  onChange(listener: () => void): Disposable
  find(id: InstanceId): Instance | undefined
  /** True while work is under way or waiting that may still change the state. */
  isBusy(id: InstanceId): boolean
}

export interface WaitFor {
  readonly state: InstanceState
  readonly timeoutMs: number
  /** A caller who hangs up counts as one whose time is up. */
  readonly signal?: AbortSignal
}

/**
 * Waits until the instance is in `state`. Answers early, with the reason in words, when it rests elsewhere and nothing is under way
 * that would move it. Throws `not_found` when it is deleted meanwhile.
 */
export async function waitForState(id: InstanceId, wanted: WaitFor, uses: WaitUses): Promise<WaitResult> {
  const name = uses.find(id)?.name ?? id
  const { promise, resolve, reject } = Promise.withResolvers<WaitResult>()
  const settle = (isLate: boolean): void => {
    const instance = uses.find(id)
    if (!instance) reject(new AppError('not_found', `The instance ${name} was deleted`))
    else if (instance.state === wanted.state) resolve(answer(instance, false))
    else if (isLate) resolve({ ...answer(instance, true), reason: stillUnderWay(instance, wanted) })
    else if (isResting(instance.state) && !uses.isBusy(id)) {
      resolve({ ...answer(instance, false), reason: whyNot(instance, wanted.state) })
    }
  }
  const attempt = (isLate: boolean) => (): void => {
    try {
      settle(isLate)
    } catch (error) {
      reject(error)
    }
  }
  const look = attempt(false)
  const giveUp = attempt(true)
  using _listening = uses.onChange(look)
  const timer = setTimeout(giveUp, wanted.timeoutMs)
  wanted.signal?.addEventListener('abort', giveUp, { once: true })
  try {
    look()
    if (wanted.signal?.aborted) giveUp()
    return await promise
  } finally {
    clearTimeout(timer)
    wanted.signal?.removeEventListener('abort', giveUp)
  }
}

const answer = (instance: Instance, timedOut: boolean): WaitResult => ({
  state: instance.state,
  timedOut,
  ...(instance.stateError === undefined ? {} : { stateError: instance.stateError }),
})

function whyNot(instance: Instance, wanted: InstanceState): string {
  const how = instance.state === 'Stopped' ? endOf(instance) : ''
  const error = instance.stateError === undefined ? '' : `: ${instance.stateError}`
  const isDue = restartOutlook(instance, { nowMs: Date.now() }).kind === 'due'
  const then = isDue ? 'and is yet to be started again by its restart policy' : `and will not become ${wanted} by itself`
  return `It is ${instance.state}${how}${error} ${then}`
}

function endOf({ exitCode, exitMessage }: Instance): string {
  if (exitCode === undefined) return exitMessage === undefined ? '' : ` (${exitMessage})`
  return ` (its workload ended with code ${exitCode}${exitMessage === undefined || exitMessage === '' ? '' : `, ${exitMessage}`})`
}

const stillUnderWay = (instance: Instance, wanted: WaitFor): string =>
  `It is still ${instance.state} after ${Math.round(wanted.timeoutMs / 100) / 10} s${instance.operation === undefined ? '' : `, with ${instance.operation} under way`}`
