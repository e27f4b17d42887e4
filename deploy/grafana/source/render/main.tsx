// The page: the dashboard on Grafana's grid, in Grafana's colours.

import '@fontsource/inter/400.css';
import '@fontsource/inter/500.css';

import { createTheme, type DataFrame, type GrafanaTheme2, ThemeContext } from '@grafana/data';
import type { Panel, RowPanel } from '@grafana/schema';
import { GlobalStyles, Icon } from '@grafana/ui';
import { type ReactElement, useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';

import { dashboard } from '../dashboard.ts';
import { type Changes, Drawn } from './panel.tsx';
import { frames, series, to } from './prometheus.ts';

/** As in Grafana: height of a unit of the grid, and the gap between panels. */
const UNIT = 30;
const GAP = 8;
const EDGE = 16;

const theme: GrafanaTheme2 = createTheme({ colors: { mode: 'dark' } });
const panels = dashboard.panels ?? [];

interface Data {
  frames: Map<number, DataFrame[]>;
  changes: Changes;
}

async function load(): Promise<Data> {
  const entries = await Promise.all(
    panels.map(async (panel): Promise<[number, DataFrame[]]> => {
      const targets = 'targets' in panel ? (panel.targets ?? []) : [];
      return [panel.id ?? 0, await frames(targets)];
    }),
  );
  const annotation = dashboard.annotations?.list?.[0] as { expr?: string } | undefined;
  const changes = await series(annotation?.expr ?? '', false);
  return {
    frames: new Map(entries),
    // Points that follow each other are one change.
    changes: changes.flatMap((one) => {
      const times = (one.values ?? []).map(([at]) => at);
      return times.filter((at, index) => index === 0 || at - times[index - 1]! > 30);
    }),
  };
}

function Placed({ panel, data, width }: { panel: Panel | RowPanel; data: Data; width: number }): ReactElement {
  const { x, y, w, h } = panel.gridPos ?? { x: 0, y: 0, w: 24, h: 1 };
  const column = (width - 2 * EDGE + GAP) / 24;
  const place = {
    position: 'absolute',
    left: EDGE + x * column,
    top: y * (UNIT + GAP),
    width: w * column - GAP,
    height: h * (UNIT + GAP) - GAP,
  } as const;
  if (panel.type === 'row') {
    return (
      <div style={{ ...place, display: 'flex', alignItems: 'center', gap: 8, fontWeight: 500, fontSize: 16 }}>
        <Icon name="angle-down" />
        {panel.title}
      </div>
    );
  }
  return (
    <div style={place} data-panel={panel.title}>
      <Drawn
        panel={panel as Panel}
        frames={data.frames.get(panel.id ?? 0) ?? []}
        changes={data.changes}
        width={place.width}
        height={place.height}
        theme={theme}
      />
    </div>
  );
}

function Page(): ReactElement {
  const [data, setData] = useState<Data>();
  useEffect(() => {
    void document.fonts.ready.then(load).then(setData);
  }, []);
  const last = panels.at(-1)?.gridPos;
  const height = ((last?.y ?? 0) + (last?.h ?? 0)) * (UNIT + GAP) + EDGE;
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <style>{`body { background: ${theme.colors.background.canvas}; font-family: Inter, sans-serif; overflow: auto; }`}</style>
      <header style={{ display: 'flex', alignItems: 'baseline', gap: 16, padding: '14px 16px 12px' }}>
        <span style={{ fontSize: 20, fontWeight: 500 }}>{dashboard.title}</span>
        {(dashboard.templating?.list ?? []).slice(1).map((variable) => (
          <span key={variable.name} style={{ color: theme.colors.text.secondary }}>
            {variable.label} <span style={{ color: theme.colors.text.primary }}>All</span>
          </span>
        ))}
        <span style={{ marginLeft: 'auto', color: theme.colors.text.secondary }}>
          {new Date(to * 1000).toISOString().slice(0, 16).replace('T', ' ')} UTC
        </span>
      </header>
      {data && (
        <main data-drawn="true" style={{ position: 'relative', height }}>
          {panels.map((panel) => (
            <Placed key={panel.id} panel={panel} data={data} width={document.documentElement.clientWidth} />
          ))}
        </main>
      )}
    </ThemeContext.Provider>
  );
}

createRoot(document.getElementById('root')!).render(<Page />);
