import { once } from 'node:events'
import { CHANNEL, type ExecNotice, type ExecStart } from '@dormouse/api/streams.ts'
import { WebSocket } from 'ws'

export interface ExecResult {
  readonly exitCode: number
  readonly stdout: string
  readonly stderr: string
}

/** One command inside an instance, over the API's WebSocket, with its streams apart. */
export async function execOverApi(socket: string, instance: string, start: ExecStart): Promise<ExecResult> {
  const connection = new WebSocket(`ws+unix:${socket}:/instances/${encodeURIComponent(instance)}/exec`)
  const output = { [CHANNEL.stdout]: '', [CHANNEL.stderr]: '' } as Record<number, string>
  let notice: ExecNotice | undefined
  connection.on('message', (data: Buffer, isBinary: boolean) => {
    if (isBinary) output[data[0] ?? 0] += data.toString('utf8', 1)
    else notice = JSON.parse(data.toString('utf8')) as ExecNotice
  })
  await once(connection, 'open')
  const closed = once(connection, 'close')
  connection.send(JSON.stringify({ separate_streams: true, ...start }))
  await closed
  if (notice === undefined || !('exitCode' in notice)) {
    throw new Error(`exec in ${instance}: ${notice !== undefined && 'error' in notice ? notice.error : 'closed without an exit code'}`)
  }
  return { exitCode: notice.exitCode, stdout: output[CHANNEL.stdout] ?? '', stderr: output[CHANNEL.stderr] ?? '' }
}
