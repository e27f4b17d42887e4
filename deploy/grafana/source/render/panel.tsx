// One panel of the dashboard: its frames dressed as Grafana dresses them, then Grafana's component.

import {
  type DataFrame,
  dateTime,
  type FieldConfig,
  getDisplayProcessor,
  type GrafanaTheme2,
  type TimeRange,
} from '@grafana/data';
import type { FieldConfigSource, Panel } from '@grafana/schema';
import { BigValue, BigValueTextMode, PanelChrome, TimeSeries, type UPlotConfigBuilder } from '@grafana/ui';
import { useLayoutEffect, type ReactElement } from 'react';

import { from, to } from './prometheus.ts';

/** Moments at which the leader changed, in seconds since 1970. */
export type Changes = number[];

const range: TimeRange = {
  from: dateTime(from * 1000),
  to: dateTime(to * 1000),
  raw: { from: dateTime(from * 1000), to: dateTime(to * 1000) },
};

/** Gives every field its unit, colour and name, as the dashboard says. */
function dressed(frames: DataFrame[], source: FieldConfigSource, theme: GrafanaTheme2): DataFrame[] {
  let index = 0;
  return frames.map((frame) => ({
    ...frame,
    fields: frame.fields.map((field) => {
      if (field.type === 'time') return { ...field, display: getDisplayProcessor({ field, theme }) };
      const config = structuredClone(source.defaults) as FieldConfig;
      config.displayName = field.name;
      for (const { matcher, properties } of source.overrides) {
        if (matcher.options !== field.name) continue;
        for (const { id, value } of properties) Object.assign(config, { [id]: value });
      }
      const state = { seriesIndex: index++, displayName: field.name };
      const dressed = { ...field, config, state };
      return { ...dressed, display: getDisplayProcessor({ field: dressed, theme }) };
    }),
  }));
}

interface Drawing {
  panel: Panel;
  frames: DataFrame[];
  changes: Changes;
  width: number;
  height: number;
  theme: GrafanaTheme2;
}

export function Drawn(drawing: Drawing): ReactElement {
  const { panel, width, height } = drawing;
  return (
    <PanelChrome title={panel.title ?? ''} description={panel.description ?? ''} width={width} height={height}>
      {(width, height) => <Content {...drawing} width={width} height={height} />}
    </PanelChrome>
  );
}

function Content({ panel, frames, changes, width, height, theme }: Drawing): ReactElement {
  const source = panel.fieldConfig ?? { defaults: {}, overrides: [] };
  const fields = dressed(frames, source, theme);
  const last = fields[0]?.fields[1];
  if (panel.type === 'stat') {
    const value = last
      ? last.display!(last.values.at(-1))
      : getDisplayProcessor({ field: { type: 'number', config: source.defaults } as never, theme })(null);
    return (
      <BigValue
        width={width}
        height={height}
        value={{ ...value, title: '' }}
        theme={theme}
        textMode={BigValueTextMode.Value}
        {...(panel.options as object as Pick<Parameters<typeof BigValue>[0], 'colorMode' | 'graphMode' | 'justifyMode'>)}
      />
    );
  }
  if (fields.length === 0) return <div data-empty={panel.title}>No data</div>;
  const legend = (panel.options as { legend: Parameters<typeof TimeSeries>[0]['legend'] }).legend;
  return (
    <TimeSeries
      frames={fields}
      timeRange={range}
      timeZone="utc"
      width={width}
      height={height}
      legend={legend}
      options={panel.options ?? {}}
    >
      {(builder) => <ChangeLines config={builder} changes={changes} color={theme.visualization.getColorByName('purple')} />}
    </TimeSeries>
  );
}

/** Dashed lines where the leader changed, as Grafana draws annotations. */
function ChangeLines({ config, changes, color }: { config: UPlotConfigBuilder; changes: Changes; color: string }): null {
  useLayoutEffect(() => {
    config.addHook('draw', (plot) => {
      const { ctx, bbox } = plot;
      ctx.save();
      ctx.beginPath();
      ctx.setLineDash([5, 5]);
      ctx.lineWidth = 2;
      ctx.strokeStyle = color;
      for (const change of changes) {
        const x = Math.round(plot.valToPos(change * 1000, 'x', true));
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
      }
      ctx.stroke();
      ctx.restore();
    });
  }, [config, changes, color]);
  return null;
}
