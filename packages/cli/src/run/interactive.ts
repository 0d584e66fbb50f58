/**
 * `run -i`, `run -t`: the instance idles, and the image's command runs as an exec that has this terminal. The API has no way to
 * attach to a workload, and a workload's input is always empty; so the command that someone wants to talk to must not be one.
 */
import type { Image } from '@dormouse/api/images.ts'
import type { Instance } from '@dormouse/api/instances.ts'
import { endAs } from '../commands/exec.ts'
import type { Daemon } from '../daemon.ts'
import { execSession } from '../exec-session.ts'
import { EXIT, Failure } from '../failure.ts'
import { becomeRunning } from '../instance-life.ts'
import { warn } from '../output/print.ts'
import type { CreateOptions } from './create-instance.ts'
import { remove } from './foreground.ts'
import type { Interrupts } from './interrupts.ts'

interface Options extends CreateOptions {
  readonly interactive?: true
  readonly tty?: true
  readonly rm?: true
}

export async function runInteractively(
  daemon: Daemon,
  instance: Instance,
  image: Image,
  argv: readonly string[],
  options: Options,
  interrupts: Interrupts,
): Promise<void> {
  const { id, name } = instance
  const waiting = new AbortController()
  interrupts.listen(() => waiting.abort())
  try {
    const running = await becomeRunning(daemon, instance, waiting.signal)
    if (running.state !== 'Running') throw couldNotIdle(running)
    interrupts[Symbol.dispose]()
    const end = await execSession(daemon, {
      instance: id,
      command: commandOf(image, argv, options),
      interactive: options.interactive === true,
      tty: options.tty === true,
    })
    endAs(end)
  } catch (error) {
    if (!waiting.signal.aborted) throw error
    process.exitCode = EXIT.interrupted
  } finally {
    if (options.rm) await remove(daemon, id)
    else
      await daemon
        .call('stopInstance', { params: { id }, body: { force: true } })
        .catch((error: Error) => warn(`${name} could not be stopped: ${error.message}`))
  }
}

/** What a container engine would run: entrypoint and command of the image, each replaced by what was given. */
export function commandOf(image: Pick<Image, 'entrypoint' | 'cmd'>, argv: readonly string[], options: { entrypoint?: string }): string[] {
  const entrypoint = options.entrypoint !== undefined ? [options.entrypoint] : (image.entrypoint ?? [])
  const cmd = argv.length > 0 ? argv : options.entrypoint !== undefined ? [] : (image.cmd ?? [])
  return [...entrypoint, ...cmd]
}

const couldNotIdle = (instance: Instance): Failure =>
  new Failure(`${instance.name} did not stay up: ${instance.exit_message ?? `it is ${instance.state}`}`, {
    hint: 'With -i and -t the image needs /bin/sh; run it without them, or with -d and then use: dormouse exec',
  })
