/** What `make install` puts on a host works, and an upgrade of it goes unnoticed by the VMs. */
import assert from 'node:assert/strict'
import { access, readdir, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { REPOSITORY, startDaemon } from '../harness/daemon-process.ts'
import { dormouse } from '../harness/dormouse-command.ts'
import { install, installedIn } from '../harness/installed.ts'
import { processesNaming } from '../harness/processes.ts'
import { scratchDir } from '../harness/scratch.ts'

const step = () => ({ signal: AbortSignal.timeout(60_000) })

test('a VM runs on while the installed daemon is stopped, upgraded and started again', async (t) => {
  const dir = await scratchDir(t)
  const { path } = await makeBusyboxImage(join(dir, 'image'))
  const prefix = join(dir, 'usr')
  const place = join(dir, 'd')
  const installed = await installedIn(prefix)
  const start = () => startDaemon({ dir: place, argv: installed.daemon, env: installed.env })
  const run = async (socket: string, ...args: string[]): Promise<string> => {
    const { code, stdout, stderr } = await dormouse(args, { socket, program: installed.cli })
    assert.equal(code, 0, `dormouse ${args.join(' ')}: ${stderr}`)
    return stdout
  }
  const bootId = (socket: string) => run(socket, 'exec', 'web', 'cat', '/proc/sys/kernel/random/boot_id')
  const vmms = async () => (await processesNaming(place)).map(({ pid }) => pid).toSorted()

  let before: string
  let running: number[]
  {
    await using first = await start()
    await run(first.socket, 'image', 'import', path, 'test/busybox:latest')
    await run(first.socket, 'run', '-d', '--name', 'web', 'test/busybox:latest')
    before = await bootId(first.socket)
    await first.stop()
    running = await vmms()
    assert.ok(running.length > 0, 'the VM must outlive the daemon')
    await installedIn(prefix)
    assert.deepEqual(await vmms(), running, 'the upgrade must not touch what runs')

    await using second = await start()
    assert.match(await run(second.socket, 'ps'), /web .*Running/)
    assert.equal(await bootId(second.socket), before)
    assert.match(await run(second.socket, 'logs', 'web'), /hello from web/)
    await run(second.socket, 'rm', '-f', 'web')
    await second.stop()
  }
  assert.deepEqual(await processesNaming(place), [])
})

test('an install respects DESTDIR: what is staged names where it will be, and a second one keeps the configuration', async (t) => {
  const destdir = await scratchDir(t)
  await install({ prefix: '/opt/dormouse', destdir })
  const staged = (path: string): string => join(destdir, path)
  const unit = await readFile(staged('/opt/dormouse/lib/systemd/system/dormouse.service'), 'utf8')
  assert.match(unit, /^ExecStart=\/opt\/dormouse\/lib\/dormouse\/node \/opt\/dormouse\/lib\/dormouse\/daemon\/main\.js serve$/m)
  assert.match(unit, /^KillMode=process$/m)
  assert.match(unit, /^RuntimeDirectoryPreserve=yes$/m)
  assert.doesNotMatch(unit, new RegExp(destdir))
  const { stdout } = await runCommand([staged('/opt/dormouse/bin/dormouse'), 'version', '--client'], { step: step() })
  assert.match(stdout, /^dormouse \d/)
  const config = staged('/etc/dormouse/config.json')
  const { mtimeMs } = await stat(config)
  await install({ prefix: '/opt/dormouse', destdir })
  assert.equal((await stat(config)).mtimeMs, mtimeMs)
  assert.deepEqual((await readdir(staged('/opt/dormouse/lib'))).toSorted(), ['dormouse', 'systemd'])

  await runCommand(['bash', join(REPOSITORY, 'scripts/uninstall.sh'), '/opt/dormouse', destdir], { step: step() })
  await assert.rejects(access(staged('/opt/dormouse/bin/dormouse')))
  await assert.rejects(access(staged('/opt/dormouse/lib/dormouse')))
  await access(config)
})

test('systemd finds nothing wrong with the unit', async (t) => {
  const hasSystemd = await access('/usr/bin/systemd-analyze').then(
    () => true,
    () => false,
  )
  if (!hasSystemd) return t.skip('this host has no systemd-analyze')
  const dir = await scratchDir(t)
  await installedIn(join(dir, 'usr'))
  const unit = join(dir, 'usr/lib/systemd/system/dormouse.service')
  const { stdout, stderr } = await runCommand(['systemd-analyze', 'verify', '--man=no', unit], { step: step() })
  assert.equal(
    `${stdout}${stderr}`
      .split('\n')
      // Before systemd 254 it is passed over.
      .filter((line) => line.includes('dormouse.service') && !/Unknown key .*DelegateSubgroup/.test(line))
      .join('\n'),
    '',
  )
})
