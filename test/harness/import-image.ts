import type { DaemonProcess } from './daemon-process.ts'
import { dormouse } from './dormouse-command.ts'

/** Imports an OCI layout or an archive as a person would, and comes back when it can be run. */
export async function importImage(daemon: Pick<DaemonProcess, 'socket'>, path: string, name: string): Promise<void> {
  const { code, stderr } = await dormouse(['image', 'import', path, name], { socket: daemon.socket })
  if (code !== 0) throw new Error(`The image ${name} was not imported: ${stderr}`)
}
