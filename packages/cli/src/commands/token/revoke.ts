import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { forEachName } from '../../each.ts'
import { usageFailure } from '../../failure.ts'
import { print } from '../../output/print.ts'
import { parseDurationOption } from '../../parse/values.ts'

interface Options extends HostOption {
  readonly subject?: string
  readonly olderThan?: string
}

export function define(command: Command): void {
  command
    .argument('[id...]', 'ids, as `dormouse token ls` shows them')
    .option('--subject <name>', 'every token of this subject, also those that were made elsewhere with the same secret')
    .option('--older-than <duration>', 'with --subject: only those issued longer ago than this')
    .action((ids: string[]) => revoke(ids, command.optsWithGlobals()))
}

async function revoke(ids: readonly string[], options: Options): Promise<void> {
  if (ids.length > 0 === (options.subject !== undefined)) throw usageFailure('Give ids, or --subject')
  const daemon = connect(options)
  if (options.subject !== undefined) {
    const age = options.olderThan === undefined ? undefined : parseDurationOption(options.olderThan)
    const { revoked } = await daemon.call('revokeTokens', {
      body: { subject: options.subject, ...(age !== undefined && { issued_before: new Date(Date.now() - age).toISOString() }) },
    })
    return print(`${revoked} revoked; none of ${options.subject}${age === undefined ? '' : ' of that age'} holds any longer`)
  }
  if (options.olderThan !== undefined) throw usageFailure('--older-than goes with --subject')
  await forEachName(ids, {}, async (id) => {
    await daemon.call('revokeToken', { params: { id } })
    print(id)
  })
}
